// How a request's data gets from the guest's pages to the target and back: the interface of its two ways,
// copy-path.ts and map-path.ts, and the batch of copies that both use. A grant that fails marks its request,
// and only that.
import { GrantCopyBatch } from "../native/grant-copy.ts";
import type { GrantTable } from "../platform/platform.ts";

export interface GrantPath {
  /** Gives `op` memory for its one request. False: there is none at the moment. */
  begin(op: number): boolean;
  /** Adds `row` at the end of `op`. False: start another operation for it. */
  extend(op: number, row: number): boolean;
  /** Brings in the data of the writes begun since. Failures are in `requests.failed`. */
  fetch(): void;
  /** Hands `op`'s data, just read, to the guest: all of them at once with the next `deliver`. */
  finish(op: number): void;
  deliver(): void;
  /** Takes the memory back. */
  end(op: number): void;
  /**
   * How what is left of `op` is to be transferred: 0, plainly at `operations.address` plus `done`; otherwise
   * that many iovecs are at `vectorAddress`.
   */
  vectors(op: number): number;
  vectorAddress(op: number): number;
  close(): void;
}

const COPY_BATCH = 4096;

/** A batch of grant copies that knows which request each segment belongs to. */
export class RequestCopies {
  readonly batch: GrantCopyBatch;
  /** Segments copied since the start: a statistic. */
  copied = 0;
  readonly #rows = new Uint16Array(COPY_BATCH);
  readonly #grants: GrantTable;
  readonly #failed: Uint8Array;

  constructor(grants: GrantTable, failed: Uint8Array) {
    this.batch = new GrantCopyBatch(COPY_BATCH);
    this.#grants = grants;
    this.#failed = failed;
  }

  fromGrant(row: number, domid: number, ref: number, offset: number, length: number, address: number): void {
    if (this.batch.full) this.run();
    this.#rows[this.batch.count] = row;
    this.batch.fromGrant(domid, ref, offset, length, address);
  }

  toGrant(row: number, domid: number, ref: number, offset: number, length: number, address: number): void {
    if (this.batch.full) this.run();
    this.#rows[this.batch.count] = row;
    this.batch.toGrant(domid, ref, offset, length, address);
  }

  /** One call for the whole batch; every status is looked at. */
  run(): void {
    const { batch } = this;
    const count = batch.count;
    if (count === 0) return;
    const error = this.#grants.copy(batch);
    for (let i = 0; i < count; i++) if (error !== 0 || batch.status(i) !== 0) this.#failed[this.#rows[i]] = 1;
    this.copied += count;
    batch.clear();
  }

  close(): void {
    this.batch.close();
  }
}
