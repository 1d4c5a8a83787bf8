// Events of a trace as lines: like strace's output for people, JSON for scripts.
import { typeText } from "../protocol/xs-content.ts";
import { REASON_LIMIT } from "./bounds.ts";
import { printable, replyText, requestText, responseText } from "./packet-text.ts";
import { contentOf } from "./report.ts";
import type { SeenPacket, TraceEvent } from "./trace-events.ts";
import { connectionName, errorName, featureNames } from "./verdict.ts";
import { counted } from "../core/counted.ts";

/** The line of an event, without its time; undefined: it has none. `limit` is in characters per string. */
export function eventText(event: TraceEvent, limit: number): string | undefined {
  switch (event.kind) {
    case "request":
      return undefined; // people see it with its reply, or as unfinished
    case "unfinished":
      return `${idText(event.request)} ${requestOf(event.request, limit)} <unfinished ...>`;
    case "reply":
      return replyLine(event, limit);
    case "watch-event":
      return `-- ${responseText(event.packet.header, event.packet.payload, limit)}`;
    case "dropped":
      return `${idText(event.request)} ${requestOf(event.request, limit)} = ? <dropped by the reset>`;
    case "lost":
      return `-- ${counted(event.bytes, "byte")} of ${event.direction}s passed unseen`;
    case "violation":
      return `-- ${event.direction}s are no packets any more: ${printable(event.reason, REASON_LIMIT)}`;
    case "reset":
      return resetText(event);
    case "state": {
      const { serverFeatures, connection, error } = event.words;
      const features = featureNames(serverFeatures).join(" ");
      return `-- server_features ${serverFeatures}${features === "" ? "" : ` (${features})`}, connection ${connection} (${connectionName(connection)}), error ${error} (${errorName(error)})`;
    }
  }
}

/** What passed between the last look and the reset cannot be recovered, not even how much it was. */
function resetText({ bytes, unseenUs }: TraceEvent & { kind: "reset" }): string {
  const unfinished = bytes === 0 ? "" : `${counted(bytes, "byte")} of unfinished packets went with it; `;
  const unseen = `what passed in the ${(unseenUs / 1e6).toFixed(6)} s before is not known`;
  return `-- the ring began anew; ${unfinished}${unseen}`;
}

/** When the event of a line began: for a reply, when its request was seen, unless that has been shown as unfinished. */
export function lineTimeUs(event: TraceEvent): number {
  if (event.kind === "unfinished" || event.kind === "dropped") return event.request.timeUs;
  if (event.kind === "reply" && event.request !== undefined && !event.wasUnfinished)
    return event.request.timeUs;
  return event.timeUs;
}

function replyLine(event: TraceEvent & { kind: "reply" }, limit: number): string {
  const { packet, request } = event;
  const answer = replyText(packet.header, packet.payload, limit);
  if (request === undefined)
    return `${idText(packet)} ${typeText(packet.header.type)} = ${answer} <request not seen>`;
  const latency = `<${((packet.timeUs - request.timeUs) / 1e6).toFixed(6)}>`;
  const call = event.wasUnfinished
    ? `<... ${typeText(request.header.type)} resumed>`
    : requestOf(request, limit);
  return `${idText(request)} ${call} = ${answer} ${latency}`;
}

function idText({ header }: SeenPacket): string {
  return `#${header.reqId}`;
}

function requestOf({ header, payload }: SeenPacket, limit: number): string {
  return requestText(header, payload, limit);
}

/** An event with stable field names; undefined for events that only people need. Strings are as in inspect's JSON. */
export function eventAsJson(event: TraceEvent): Record<string, unknown> | undefined {
  const base = { event: event.kind, timeUs: event.timeUs };
  switch (event.kind) {
    case "request":
      return { ...base, ...contentOf("request", event.packet.header, event.packet.payload) };
    case "unfinished":
      return undefined;
    case "reply": {
      const { packet, request } = event;
      return {
        ...base,
        ...contentOf("response", packet.header, packet.payload),
        latencyUs: request === undefined ? null : packet.timeUs - request.timeUs,
        request: request === undefined ? null : contentOf("request", request.header, request.payload),
      };
    }
    case "watch-event":
      return { ...base, ...contentOf("response", event.packet.header, event.packet.payload) };
    case "dropped":
      return { ...base, ...contentOf("request", event.request.header, event.request.payload) };
    case "lost":
      return { ...base, direction: event.direction, bytes: event.bytes };
    case "violation":
      return { ...base, direction: event.direction, reason: event.reason };
    case "reset":
      return { ...base, bytes: event.bytes, unseenUs: event.unseenUs };
    case "state":
      return { ...base, ...event.words };
  }
}
