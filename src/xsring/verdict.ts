// Sums up a look at a ring in one line: who waits for whom, or what is broken. A look is a moment, and on a busy ring
// somebody always waits, so a wait is believed only after another look (report.ts).
import { typeText } from "../protocol/xs-content.ts";
import {
  XENSTORE_CONNECTED,
  XENSTORE_ERROR_COMM,
  XENSTORE_ERROR_NONE,
  XENSTORE_ERROR_PROTO,
  XENSTORE_ERROR_RINGIDX,
  XENSTORE_RECONNECT,
  XS_RING_BYTES,
  XENSTORE_SERVER_FEATURE_DOMID_ANY,
  XENSTORE_SERVER_FEATURE_ERROR,
  XENSTORE_SERVER_FEATURE_RECONNECTION,
  XENSTORE_SERVER_FEATURE_WATCHDEPTH,
} from "../protocol/xs-ring.ts";
import type { RingStreamView, RingWords } from "../protocol/xs-ring-view.ts";
import { unansweredRequest } from "./exchanges.ts";
import { counted } from "../core/counted.ts";

/** Stable names, for scripts. */
export type VerdictCode = "healthy" | "guest-waits" | "server-waits" | "reconnect-pending" | "corrupt";

export interface Verdict {
  readonly code: VerdictCode;
  /** The whole line, which begins with the code in words. */
  readonly text: string;
}

/** Exit status of `xsring inspect`. */
export const VERDICT_STATUS: Readonly<Record<VerdictCode, number>> = {
  healthy: 0,
  corrupt: 4,
  "guest-waits": 10,
  "server-waits": 11,
  "reconnect-pending": 12,
};

const FEATURES: readonly (readonly [number, string])[] = [
  [XENSTORE_SERVER_FEATURE_RECONNECTION, "RECONNECTION"],
  [XENSTORE_SERVER_FEATURE_ERROR, "ERROR"],
  [XENSTORE_SERVER_FEATURE_WATCHDEPTH, "WATCHDEPTH"],
  [XENSTORE_SERVER_FEATURE_DOMID_ANY, "DOMID_ANY"],
];
const ERRORS: Readonly<Record<number, string>> = {
  [XENSTORE_ERROR_NONE]: "none",
  [XENSTORE_ERROR_COMM]: "COMM",
  [XENSTORE_ERROR_RINGIDX]: "RINGIDX",
  [XENSTORE_ERROR_PROTO]: "PROTO",
};
const CONNECTIONS: Readonly<Record<number, string>> = {
  [XENSTORE_CONNECTED]: "CONNECTED",
  [XENSTORE_RECONNECT]: "RECONNECT",
};

/** The names of the bits of server_features; a bit without a name appears as its value. */
export function featureNames(features: number): string[] {
  const names: string[] = [];
  for (let bit = 1; bit < 2 ** 32; bit *= 2)
    if (Math.floor(features / bit) % 2 === 1)
      names.push(FEATURES.find(([value]) => value === bit)?.[1] ?? `0x${bit.toString(16)}`);
  return names;
}

export function errorName(error: number): string {
  return ERRORS[error] ?? "unknown";
}

export function connectionName(connection: number): string {
  return CONNECTIONS[connection] ?? "unknown";
}

/** Whether the guest may ask this server for a new start. */
export function canReconnect(words: RingWords): boolean {
  return (words.serverFeatures & XENSTORE_SERVER_FEATURE_RECONNECTION) !== 0;
}

/** Judges a ring by one look at it. */
export function judge(words: RingWords, requests: RingStreamView, responses: RingStreamView): Verdict {
  const broken = corruption(words, requests, responses);
  if (broken !== undefined) return verdict("corrupt", `corrupt: ${broken}`);
  if (words.connection === XENSTORE_RECONNECT)
    return verdict("reconnect-pending", `reconnect pending: ${reconnectText(words)}`);
  return waiting(requests, responses) ?? rest(requests, responses);
}

function verdict(code: VerdictCode, text: string): Verdict {
  return { code, text };
}

function corruption(
  words: RingWords,
  requests: RingStreamView,
  responses: RingStreamView,
): string | undefined {
  if (words.error !== XENSTORE_ERROR_NONE)
    return `the server reports error ${words.error} (${errorName(words.error)}) and ignores the ring`;
  for (const [name, stream] of [
    ["request", requests],
    ["response", responses],
  ] as const) {
    if (stream.usedBytes === undefined)
      return `the ${name} indices are ${(stream.prod - stream.cons) >>> 0} apart, above ${XS_RING_BYTES}`;
    if (stream.violation !== undefined)
      return `${stream.violation.reason}, at index ${stream.violation.at} of the ${name}s`;
  }
  if (CONNECTIONS[words.connection] === undefined)
    return `the connection word is ${words.connection}, which means nothing`;
  return undefined;
}

function reconnectText(words: RingWords): string {
  return canReconnect(words)
    ? "the guest asked for a new start; the server has not answered yet"
    : "the guest asked for a new start, which this server does not offer: it will not answer";
}

function waiting(requests: RingStreamView, responses: RingStreamView): Verdict | undefined {
  const toServer = requests.usedBytes ?? 0;
  const toGuest = responses.usedBytes ?? 0;
  if (toGuest > 0) {
    const also = toServer > 0 ? `, and requests wait too, ${counted(toServer, "byte")}` : "";
    return verdict("server-waits", `server waits for the guest: ${counted(toGuest, "byte")} not read${also}`);
  }
  if (toServer > 0)
    return verdict("guest-waits", `guest waits for the server: ${counted(toServer, "byte")} not read`);
  if (requests.crossing !== undefined)
    return verdict("server-waits", `server waits for the guest: ${restOf(requests, "a request")}`);
  if (responses.crossing !== undefined)
    return verdict("guest-waits", `guest waits for the server: ${restOf(responses, "a response")}`);
  const open = unansweredRequest(requests, responses);
  if (open === undefined) return undefined;
  const { type, reqId } = open.header;
  return verdict(
    "guest-waits",
    `guest waits for the server: ${typeText(type)} ${reqId} was taken and not answered`,
  );
}

function restOf({ crossing }: RingStreamView, what: string): string {
  const { header, producedBytes } = crossing ?? {};
  return header === undefined
    ? `the rest of ${what} has not come`
    : `the rest of ${what} (${typeText(header.type)}) has not come, ${producedBytes} of ${16 + header.length} bytes have`;
}

function rest(requests: RingStreamView, responses: RingStreamView): Verdict {
  const unused = requests.prod === 0 && responses.prod === 0;
  const reset = unused && (requests.poison === "0xff" || requests.poison === "deadbeef");
  const state = reset ? "closed and not used since" : unused ? "not used yet" : "idle";
  return verdict("healthy", `healthy: ${state}`);
}
