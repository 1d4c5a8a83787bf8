// Follows a live ring: looks at it as often as it moves, and gives every record to a sink. Reading a page
// disturbs nobody: no event is sent, nothing is written, and the server is not asked anything.
import { setImmediate as untilOthersRan } from "node:timers/promises";
import { pause } from "../core/deadline.ts";
import { copyRing } from "../protocol/xs-ring-view.ts";
import type { XsRingPage } from "../protocol/xs-ring.ts";
import { RingFollower, type TraceRecord } from "./ring-follower.ts";

export interface TraceOptions {
  /** Between looks at a ring that is quiet. A busy one is looked at all the time. 0: any ring is. */
  readonly intervalMs: number;
  /** Gets every record, in order. */
  readonly onRecord: (record: TraceRecord) => void;
  /** Runs after each look. */
  readonly onLook: (nowUs: number) => void;
  /** Ends the trace. */
  readonly signal: AbortSignal;
}

/** Looks in a row without news after which a ring counts as quiet: some tens of microseconds each. */
const BUSY_LOOKS = 200;

/** Microseconds since 1970. */
function nowUs(): number {
  return Math.round((performance.timeOrigin + performance.now()) * 1000);
}

/** Traces until `signal` says so, and looks once more then. What waits in the ring at the start belongs to it. */
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
