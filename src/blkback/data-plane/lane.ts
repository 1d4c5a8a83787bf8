// One ring of a disk, with a journal and counters of its own: takes requests off it, checked and journaled, and
// stages and publishes the answers. What becomes of the requests in between is the disk's affair (data-plane.ts).
import type { Domid, EvtchnPort } from "../../core/types.ts";
import type { Mapping } from "../../native/memory.ts";
import type { EventChannels } from "../../platform/platform.ts";
import type { BlkifAbi } from "../../protocol/blkif.ts";
import type { BackRing } from "./back-ring.ts";
import type { SegmentSource } from "./data/path.ts";
import type { Journal } from "./journal.ts";
import { LaneCounters } from "./lane-counters.ts";
import { RequestParser } from "./parse.ts";
import { STATUS_OF } from "./refusals.ts";
import type { OfferedDisk, RequestTable } from "./requests.ts";

export interface LaneOptions {
  /** The ring's pages, mapped. */
  readonly ring: Mapping;
  readonly port: EvtchnPort;
  /** Its number, if the disk has several queues. */
  readonly queue?: number | undefined;
  /** Counters as laid out in stats.ts. */
  readonly counters: Float64Array;
  /** Records what is in flight, for a successor. */
  readonly journal?: Journal | undefined;
}

/** What all lanes of a plane have in common. */
export interface LaneGround {
  readonly domid: Domid;
  readonly abi: BlkifAbi;
  readonly channels: EventChannels;
  readonly requests: RequestTable;
  readonly segments: SegmentSource;
  readonly disk: OfferedDisk;
}

export class Lane {
  readonly port: EvtchnPort;
  readonly queue: number | undefined;
  readonly ring: BackRing;
  /** The rows of the last batch and the verdicts on them. */
  readonly parser: RequestParser;
  readonly #counters: LaneCounters;
  readonly #journal: Journal | undefined;
  readonly #channels: EventChannels;
  readonly #requests: RequestTable;
  readonly #firstRow: number;
  readonly #slotWords: Int32Array;
  readonly #responses: Uint32Array;
  readonly #responseWords: number;
  #staged = 0;

  /** Lane number `index` of the plane, with the rows of that lane. */
  constructor(ring: BackRing, options: LaneOptions, ground: LaneGround, index: number) {
    const { domid, abi, channels, requests, segments, disk } = ground;
    this.ring = ring;
    this.port = options.port;
    this.queue = options.queue;
    this.#channels = channels;
    this.#requests = requests;
    this.#firstRow = index * ring.slots;
    this.#journal = options.journal;
    this.parser = new RequestParser(domid, ring.slots, requests, ring.requests, disk, segments, index);
    this.#counters = new LaneCounters(options.counters, ring.slots);
    this.#slotWords = new Int32Array(ring.requests.bytes.buffer);
    this.#responses = ring.responses.words;
    this.#responseWords = abi.responseBytes / 4;
  }

  /** Requests answered so far. */
  get answered(): number {
    return this.#counters.answered;
  }

  /** Checks the `count` requests just fetched, and journals all of them before any starts or is answered. */
  admit(count: number, nowMs: number): void {
    const { parser } = this;
    this.#counters.fetched(count);
    parser.admit(count, nowMs);
    this.#counters.indirect(parser.indirect);
    const journal = this.#journal;
    if (journal === undefined) return;
    const words = this.#slotWords;
    for (let slot = 0; slot < count; slot++) journal.take(parser.rows[slot] - this.#firstRow, slot, words);
    journal.commit(count);
  }

  /** Stages the answer to `row`, and frees the row. */
  respond(row: number, reason: number, nowMs: number): void {
    const requests = this.#requests;
    const words = this.#responses;
    this.#journal?.answer(row - this.#firstRow, this.#staged);
    const at = this.#staged++ * this.#responseWords;
    words[at] = requests.idLow[row];
    words[at + 1] = requests.idHigh[row];
    words[at + 2] = requests.operation[row] | ((STATUS_OF[reason] & 0xffff) << 16);
    this.#counters.answer(requests, row, reason, nowMs);
    requests.release(row);
  }

  /** Publishes what is staged, all at once and with at most one notification. */
  push(): void {
    const count = this.#staged;
    if (count === 0) return;
    this.#staged = 0;
    const notify = this.ring.push(count);
    this.#journal?.pushed(count);
    this.#counters.pushed(count, notify);
    if (notify) this.#channels.notify(this.port);
  }

  /** Frees the lane's own memory. */
  close(): void {
    this.ring.close();
  }
}
