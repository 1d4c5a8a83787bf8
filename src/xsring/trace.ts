// Follows a live ring: looks at it as often as it moves, and passes every record to a sink. Reading a page disturbs
// nobody: it sends no event, writes nothing, and does not ask the server anything.
import { setImmediate as untilOthersRan } from "node:timers/promises";
import { pause } from "../core/deadline.ts";
import { copyRing } from "../protocol/xs-ring-view.ts";
import type { XsRingPage } from "../protocol/xs-ring.ts";
import { BUSY_LOOKS } from "./bounds.ts";
import { RingFollower, type TraceRecord } from "./ring-follower.ts";

export interface TraceOptions {
  /** Between looks at a quiet ring. A busy ring is looked at all the time. 0: so is a quiet one. */
  readonly intervalMs: number;
  /** Receives every record, in order. */
  readonly onRecord: (record: TraceRecord) => void;
  /** Runs after each look. */
  readonly onLook: (nowUs: number) => void;
  /** Ends the trace. */
  readonly signal: AbortSignal;
}

/** Microseconds since 1970. */
function nowUs(): number {
  return Math.round((performance.timeOrigin + performance.now()) * 1000);
}

/** Traces until `signal` fires, then looks once more. What waits in the ring at the start is part of the trace. */
export async function traceRing(page: XsRingPage, options: TraceOptions): Promise<void> {
  const first = copyRing(page);
  const startUs = nowUs();
  const follower = new RingFollower(first, startUs);
  options.onRecord({ timeUs: startUs, kind: "state", words: follower.state });
  let quietLooks = 0;
  for (;;) {
    const isLast = options.signal.aborted;
    const timeUs = nowUs();
    const records = follower.look(copyRing(page), timeUs);
    for (const record of records) options.onRecord(record);
    options.onLook(timeUs);
    if (isLast) return;
    quietLooks = records.length > 0 ? 0 : quietLooks + 1;
    if (quietLooks < BUSY_LOOKS) await untilOthersRan();
    else await pause(options.intervalMs, options.signal);
  }
}
