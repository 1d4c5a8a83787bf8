// A ring as it is followed from outside: each look gives the records of what happened since the last. The
// ring is only read. A ring that starts anew is noticed by its indices and by its poison.
import type { XsDirection, XsHeader } from "../protocol/xs-content.ts";
import { XS_RING_BYTES } from "../protocol/xs-ring.ts";
import {
  poisonOf,
  streamBytes,
  viewRequests,
  viewResponses,
  type RingCopy,
  type RingWords,
} from "../protocol/xs-ring-view.ts";
import { StreamFollower, type Followed } from "./stream-follower.ts";

/** The words beside the indices; they change rarely. */
export type StateWords = Pick<RingWords, "serverFeatures" | "connection" | "error">;

/** What happened, and when: microseconds since 1970. What `--write` keeps. */
export type TraceRecord = { readonly timeUs: number } & (
  | {
      readonly kind: "packet";
      readonly direction: XsDirection;
      readonly header: XsHeader;
      readonly payload: Uint8Array;
    }
  | { readonly kind: "lost"; readonly direction: XsDirection; readonly bytes: number }
  | { readonly kind: "violation"; readonly direction: XsDirection; readonly reason: string }
  /**
   * Both streams began anew; so many bytes of unfinished packets went with the old ones, and whatever else
   * passed in the time since the look before.
   */
  | { readonly kind: "reset"; readonly bytes: number; readonly unseenUs: number }
  | { readonly kind: "state"; readonly words: StateWords }
);

/** Enough of the last bytes to see that they became poison. */
const TAIL_BYTES = 16;
/** Whoever resets a ring has reset both streams after so long. */
const HALF_RESET_US_MAX = 100_000;

interface Side {
  readonly follower: StreamFollower;
  /** The bytes before `follower.next`, as they were. */
  tail: Uint8Array;
}

export class RingFollower {
  readonly #requests: Side;
  readonly #responses: Side;
  #state: StateWords;
  #lastLookUs: number;
  /** Since when a reset was seen that is only half done. */
  #halfResetUs: number | undefined;

  /** Begins with what waits in the ring at the time of `copy`, which was made at `timeUs`. */
  constructor(copy: RingCopy, timeUs: number) {
    this.#lastLookUs = timeUs;
    this.#requests = startSide(new StreamFollower(viewRequests(copy)), copy.requests);
    this.#responses = startSide(new StreamFollower(viewResponses(copy)), copy.responses);
    this.#state = stateOf(copy.words);
  }

  get state(): StateWords {
    return this.#state;
  }

  /** What happened until `copy` was made, which was at `timeUs`. */
  look(copy: RingCopy, timeUs: number): TraceRecord[] {
    const { words, after } = copy;
    const records: TraceRecord[] = [];
    const state = stateOf(words);
    const changed = (Object.keys(state) as (keyof StateWords)[]).some(
      (name) => state[name] !== this.#state[name],
    );
    const wasReset =
      startedAnew(this.#requests, copy.requests, words.reqProd) ||
      startedAnew(this.#responses, copy.responses, words.rspProd);
    if (wasReset && isHalfReset(this.#requests, this.#responses, words)) {
      this.#halfResetUs ??= timeUs;
      if (timeUs - this.#halfResetUs < HALF_RESET_US_MAX) return records;
    }
    this.#halfResetUs = undefined;
    if (wasReset) {
      const bytes = this.#requests.follower.restart() + this.#responses.follower.restart();
      records.push({ timeUs, kind: "reset", bytes, unseenUs: timeUs - this.#lastLookUs });
    }
    if (changed) records.push({ timeUs, kind: "state", words: state });
    this.#state = state;
    this.#lastLookUs = timeUs;
    // A reset during the copy shows at the next look; what was copied is then of neither ring.
    if (((after.reqProd - words.reqProd) | 0) < 0 || ((after.rspProd - words.rspProd) | 0) < 0)
      return records;
    for (const [side, ring, prod, prodAfter] of [
      [this.#requests, copy.requests, words.reqProd, after.reqProd],
      [this.#responses, copy.responses, words.rspProd, after.rspProd],
    ] as const) {
      const { follower } = side;
      const followed = follower.follow(ring, prod, prodAfter);
      side.tail = tailOf(ring, follower.next);
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

function startSide(follower: StreamFollower, ring: Uint8Array): Side {
  return { follower, tail: tailOf(ring, follower.next) };
}

function tailOf(ring: Uint8Array, next: number): Uint8Array {
  const count = Math.min(TAIL_BYTES, next);
  return streamBytes(ring, (next - count) >>> 0, count);
}

/** One stream went back to 0, the other stands where it stood: whoever resets them may be between the two. */
function isHalfReset({ follower: a }: Side, { follower: b }: Side, words: RingWords): boolean {
  const { reqProd, rspProd } = words;
  return (
    (reqProd === 0 && rspProd !== 0 && rspProd === b.next) ||
    (rspProd === 0 && reqProd !== 0 && reqProd === a.next)
  );
}

/** The producer went back, or bytes that nobody can have written since are poison. */
function startedAnew({ follower, tail }: Side, ring: Uint8Array, prod: number): boolean {
  const ahead = (prod - follower.next) | 0;
  if (ahead < 0) return true;
  if (tail.length < TAIL_BYTES || ahead > XS_RING_BYTES - TAIL_BYTES) return false;
  const now = tailOf(ring, follower.next);
  const index = follower.next - TAIL_BYTES;
  return isPoison(now, index) && !isPoison(tail, index);
}

function isPoison(bytes: Uint8Array, index: number): boolean {
  const poison = poisonOf(bytes, index >>> 0);
  return poison === "0xff" || poison === "deadbeef";
}
