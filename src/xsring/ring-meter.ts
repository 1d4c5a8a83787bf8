// Measures how busy a ring is, and whether one side waits for the other, by looking at it many times in an interval.
// Bytes come from the indices and are exact; requests are counted as far as they are seen, and estimated from their
// average size where they were overwritten between two looks.
import { copyRing, loadRingWords, type RingWords } from "../protocol/xs-ring-view.ts";
import { typeText } from "../protocol/xs-content.ts";
import type { XsRingPage } from "../protocol/xs-ring.ts";
import { XS_HEADER_BYTES } from "../protocol/xs-wire.ts";
import { FRESH_BYTES_MAX, STILL_MS, TYPICAL_BYTES } from "./bounds.ts";
import { inspectRing } from "./report.ts";
import { RingFollower, type TraceRecord } from "./ring-follower.ts";
import type { VerdictCode } from "./verdict.ts";

export interface RingActivity {
  /** Per second, both. Bytes cross in either direction. */
  readonly requests: number;
  readonly bytes: number;
  /** Whether more requests crossed than were seen. */
  readonly isEstimate: boolean;
  /** The most frequent type of request, and its share of those that were seen. */
  readonly mostly: { readonly type: string; readonly share: number } | null;
  readonly verdict: VerdictCode;
  /** How long the side that the verdict names has been waiting; 0 if none is. */
  readonly waitsMs: number;
}

export class RingMeter {
  readonly #page: XsRingPage;
  readonly #follower: RingFollower;
  #words: RingWords;
  #movedAtMs: number;
  #takenAtMs: number;
  #bytes = 0;
  #seen = 0;
  #seenBytes = 0;
  #lostBytes = 0;
  readonly #types = new Map<number, number>();

  constructor(page: XsRingPage, nowMs: number) {
    this.#page = page;
    const copy = copyRing(page);
    this.#words = copy.words;
    this.#follower = new RingFollower(copy, nowMs * 1000);
    this.#movedAtMs = this.#takenAtMs = nowMs;
  }

  /** Looks at the ring once. A ring that has not moved costs next to nothing. */
  look(nowMs: number): void {
    const now = loadRingWords(this.#page);
    const before = this.#words;
    const moved = (["reqProd", "reqCons", "rspProd", "rspCons"] as const).some(
      (name) => now[name] !== before[name],
    );
    if (!moved) return;
    this.#words = now;
    this.#movedAtMs = nowMs;
    this.#bytes += advance(before.reqProd, now.reqProd) + advance(before.rspProd, now.rspProd);
    for (const record of this.#follower.look(copyRing(this.#page), nowMs * 1000)) this.#count(record);
  }

  /** What has happened since the last call, and who is waiting now. */
  take(nowMs: number): RingActivity {
    this.look(nowMs);
    const seconds = Math.max(nowMs - this.#takenAtMs, 1) / 1000;
    const size = this.#seen === 0 ? TYPICAL_BYTES : this.#seenBytes / this.#seen;
    const requests = this.#seen + Math.round(this.#lostBytes / size);
    const [type, count] = [...this.#types].reduce((most, it) => (it[1] > most[1] ? it : most), [0, 0]);
    const { code } = inspectRing(this.#page).verdict;
    const stillMs = nowMs - this.#movedAtMs;
    const isStill = stillMs >= STILL_MS;
    const waits = code === "guest-waits" || code === "server-waits";
    const activity: RingActivity = {
      requests: requests / seconds,
      bytes: this.#bytes / seconds,
      isEstimate: this.#lostBytes > 0,
      mostly: count === 0 ? null : { type: typeText(type), share: count / this.#seen },
      verdict: waits && !isStill ? "healthy" : code,
      waitsMs: waits && isStill ? stillMs : 0,
    };
    this.#takenAtMs = nowMs;
    this.#bytes = this.#seen = this.#seenBytes = this.#lostBytes = 0;
    this.#types.clear();
    return activity;
  }

  #count(record: TraceRecord): void {
    if (!("direction" in record) || record.direction !== "request") return;
    if (record.kind === "lost") this.#lostBytes += record.bytes;
    if (record.kind !== "packet") return;
    const { type } = record.header;
    this.#seen++;
    this.#seenBytes += XS_HEADER_BYTES + record.payload.length;
    this.#types.set(type, (this.#types.get(type) ?? 0) + 1);
  }
}

/** Bytes from one value of an index to the next. One that is behind began anew at 0, or lies. */
function advance(before: number, now: number): number {
  const bytes = (now - before) | 0;
  return bytes >= 0 ? bytes : Math.min(now, FRESH_BYTES_MAX);
}
