// Turns the records of a ring into events for people and scripts. Replies are matched with their requests, which
// yields latencies, and filters leave out what was not asked for. Latencies are only as exact as the looks at the
// ring are frequent.
import { readContent, typeText, type XsDirection, type XsHeader } from "../protocol/xs-content.ts";
import { XS_WATCH_EVENT } from "../protocol/xs-wire.ts";
import { PENDING_MAX, UNFINISHED_US } from "./bounds.ts";
import { answers } from "./exchanges.ts";
import type { TraceRecord } from "./ring-follower.ts";

/** A packet with the time when it was seen. */
export interface SeenPacket {
  readonly timeUs: number;
  readonly header: XsHeader;
  readonly payload: Uint8Array;
}

export type TraceEvent =
  | { readonly kind: "request"; readonly timeUs: number; readonly packet: SeenPacket }
  /** A request has been waiting for a while: people want to see it now. */
  | { readonly kind: "unfinished"; readonly timeUs: number; readonly request: SeenPacket }
  | {
      readonly kind: "reply";
      readonly timeUs: number;
      readonly packet: SeenPacket;
      /** Undefined: the request was not seen, because it was lost or came before the trace. */
      readonly request: SeenPacket | undefined;
      readonly wasUnfinished: boolean;
    }
  | { readonly kind: "watch-event"; readonly timeUs: number; readonly packet: SeenPacket }
  /** A request whose ring was reset before the reply came. */
  | { readonly kind: "dropped"; readonly timeUs: number; readonly request: SeenPacket }
  | Exclude<TraceRecord, { readonly kind: "packet" }>;

export interface TraceFilter {
  /** Types by name, including WATCH_EVENT; undefined: all. */
  readonly types: ReadonlySet<string> | undefined;
  /** Paths, with `*` for anything; undefined: all, including packets without a path. */
  readonly path: string | undefined;
}

export interface TraceCounts {
  requests: number;
  replies: number;
  watchEvents: number;
  lostBytes: number;
}

interface Pending {
  readonly request: SeenPacket;
  readonly shown: boolean;
  unfinished: boolean;
}

export class TraceEvents {
  /** Everything that was seen, including what the filter leaves out. */
  readonly counts: TraceCounts = { requests: 0, replies: 0, watchEvents: 0, lostBytes: 0 };
  readonly #emit: (event: TraceEvent) => void;
  readonly #wants: (direction: XsDirection, packet: SeenPacket) => boolean;
  #pending: Pending[] = [];

  constructor(filter: TraceFilter, emit: (event: TraceEvent) => void) {
    this.#emit = emit;
    this.#wants = compileFilter(filter);
  }

  /** Requests that have no reply yet. */
  get unansweredCount(): number {
    return this.#pending.length;
  }

  push(record: TraceRecord): void {
    this.tick(record.timeUs);
    switch (record.kind) {
      case "packet":
        if (record.direction === "request") this.#request(record);
        else this.#response(record);
        return;
      case "reset":
        this.#emit(record);
        this.#drop(record.timeUs);
        return;
      case "lost":
        this.counts.lostBytes += record.bytes;
        this.#emit(record);
        return;
      case "state":
      case "violation":
        this.#emit(record);
    }
  }

  /** Shows what has been waiting for long at `nowUs`. */
  tick(nowUs: number): void {
    for (const pending of this.#pending) {
      if (nowUs - pending.request.timeUs < UNFINISHED_US) return;
      this.#showUnfinished(pending, nowUs);
    }
  }

  /** Ends the trace: shows what is still waiting. */
  end(nowUs: number): void {
    for (const pending of this.#pending) this.#showUnfinished(pending, nowUs);
  }

  #request(packet: SeenPacket): void {
    this.counts.requests++;
    const shown = this.#wants("request", packet);
    if (shown) this.#emit({ kind: "request", timeUs: packet.timeUs, packet });
    this.#pending.push({ request: packet, shown, unfinished: false });
    if (this.#pending.length > PENDING_MAX) this.#pending.shift();
  }

  #response(packet: SeenPacket): void {
    const { timeUs, header } = packet;
    if (header.type === XS_WATCH_EVENT) {
      this.counts.watchEvents++;
      if (this.#wants("response", packet)) this.#emit({ kind: "watch-event", timeUs, packet });
      return;
    }
    this.counts.replies++;
    const index = this.#pending.findIndex(({ request }) => answers(header, request.header));
    const [pending] = index < 0 ? [] : this.#pending.splice(index, 1);
    if (pending === undefined ? this.#wants("response", packet) : pending.shown)
      this.#emit({
        kind: "reply",
        timeUs,
        packet,
        request: pending?.request,
        wasUnfinished: pending?.unfinished ?? false,
      });
  }

  #showUnfinished(pending: Pending, timeUs: number): void {
    if (pending.shown && !pending.unfinished)
      this.#emit({ kind: "unfinished", timeUs, request: pending.request });
    pending.unfinished = true;
  }

  #drop(timeUs: number): void {
    const dropped = this.#pending;
    this.#pending = [];
    for (const { request, shown } of dropped) if (shown) this.#emit({ kind: "dropped", timeUs, request });
  }
}

function compileFilter({
  types,
  path,
}: TraceFilter): (direction: XsDirection, packet: SeenPacket) => boolean {
  const glob = path === undefined ? undefined : globPattern(path);
  return (direction, { header, payload }) => {
    if (types !== undefined && !types.has(typeText(header.type))) return false;
    if (glob === undefined) return true;
    const content = readContent(direction, header.type, payload);
    return content.path !== undefined && glob.test(content.path);
  };
}

/** `*` stands for any text, including slashes. A relative path may also stand below a domain's own directory. */
function globPattern(glob: string): RegExp {
  const parts = glob.split(/\*+/).map((part) => part.replace(/[^A-Za-z0-9_/@-]/g, "\\$&"));
  const home = /^[/@*]/.test(glob) ? "" : "(?:/local/domain/[0-9]+/)?";
  return new RegExp(`^${home}${parts.join("[^]*")}$`);
}
