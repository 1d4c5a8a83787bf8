// Follows a ring from outside: each look returns the records of what happened since the last one. The ring is only
// read. Its indices show when it starts anew.
import type { XsDirection } from "../protocol/xs-content.ts";
import { viewRequests, viewResponses, type RingCopy, type RingWords } from "../protocol/xs-ring-view.ts";
import { HALF_RESET_US_MAX } from "./bounds.ts";
import { StreamFollower, type Followed } from "./stream-follower.ts";

/** The words beside the indices; they rarely change. */
export type StateWords = Pick<RingWords, "serverFeatures" | "connection" | "error">;

/** What happened and when, in microseconds since 1970. `--write` saves these records. */
export type TraceRecord = { readonly timeUs: number } & (
  | (Followed & { readonly direction: XsDirection })
  /**
   * Both streams began anew. `bytes` of unfinished packets were lost with the old streams, along with anything that
   * passed in the `unseenUs` since the previous look.
   */
  | { readonly kind: "reset"; readonly bytes: number; readonly unseenUs: number }
  | { readonly kind: "state"; readonly words: StateWords }
);

export class RingFollower {
  readonly #requests: StreamFollower;
  readonly #responses: StreamFollower;
  #state: StateWords;
  #lastLookUs: number;
  /** Since when a half-done reset has been seen. */
  #halfResetUs: number | undefined;

  /** Starts with what waits in the ring at the time of `copy`, which was made at `timeUs`. */
  constructor(copy: RingCopy, timeUs: number) {
    this.#lastLookUs = timeUs;
    this.#requests = new StreamFollower(viewRequests(copy));
    this.#responses = new StreamFollower(viewResponses(copy));
    this.#state = stateOf(copy.words);
  }

  get state(): StateWords {
    return this.#state;
  }

  /** What happened until `copy` was made, at `timeUs`. */
  look(copy: RingCopy, timeUs: number): TraceRecord[] {
    const { words, after } = copy;
    // The ring was reset during the copy, which matches neither the old nor the new ring. The next look shows the
    // reset.
    if (isBehind(after.reqProd, words.reqProd) || isBehind(after.rspProd, words.rspProd)) return [];
    const records: TraceRecord[] = [];
    const state = stateOf(words);
    const changed = (Object.keys(state) as (keyof StateWords)[]).some(
      (name) => state[name] !== this.#state[name],
    );
    const wasReset =
      isBehind(words.reqProd, this.#requests.next) || isBehind(words.rspProd, this.#responses.next);
    if (wasReset && isHalfReset(this.#requests, this.#responses, words)) {
      this.#halfResetUs ??= timeUs;
      if (timeUs - this.#halfResetUs < HALF_RESET_US_MAX) return [];
    }
    this.#halfResetUs = undefined;
    if (wasReset) {
      const bytes = this.#requests.restart() + this.#responses.restart();
      records.push({ timeUs, kind: "reset", bytes, unseenUs: timeUs - this.#lastLookUs });
    }
    if (changed) records.push({ timeUs, kind: "state", words: state });
    this.#state = state;
    this.#lastLookUs = timeUs;
    for (const [follower, ring, prod, prodAfter] of [
      [this.#requests, copy.requests, words.reqProd, after.reqProd],
      [this.#responses, copy.responses, words.rspProd, after.rspProd],
    ] as const) {
      const followed = follower.follow(ring, prod, prodAfter);
      records.push(...followed.map((it) => recordOf(it, follower.direction, timeUs)));
    }
    return records;
  }
}

function recordOf(followed: Followed, direction: XsDirection, timeUs: number): TraceRecord {
  return { timeUs, direction, ...followed };
}

function stateOf({ serverFeatures, connection, error }: RingWords): StateWords {
  return { serverFeatures, connection, error };
}

/** Whether a producer is behind its earlier position: indices only advance, unless their ring starts anew. */
function isBehind(prod: number, before: number): boolean {
  return ((prod - before) | 0) < 0;
}

/**
 * Whether one stream is at 0 and the other is not, so that a reset may be half done. A new request may also be
 * waiting for its reply, so when the responses were reset first, the requests count as not yet reset only if their
 * producer has not moved at all.
 */
function isHalfReset(requests: StreamFollower, responses: StreamFollower, words: RingWords): boolean {
  const { reqProd, rspProd } = words;
  return (
    (reqProd === 0 && rspProd !== 0 && !isBehind(rspProd, responses.next)) ||
    (rspProd === 0 && reqProd !== 0 && reqProd === requests.next)
  );
}
