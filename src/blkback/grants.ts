// How a request's data gets from the guest's pages to the target and back: the interface that copy-path.ts and
// map-path.ts implement, and the batch of copies that both use. A failed grant marks its own request only.
import { GrantCopyBatch } from "../native/grant-copy.ts";
import type { GrantTable } from "../platform/platform.ts";

export interface GrantPath {
  /** Allocates memory for the one request of `op`. Returns false if there is none at the moment. */
  begin(op: number): boolean;
  /** Appends `row` to `op`. Returns false if it needs an operation of its own. */
  extend(op: number, row: number): boolean;
  /** Brings in the data of the writes begun since the last call. Failures are marked in `requests.failed`. */
  fetch(): void;
  /** Queues the data that `op` has read for the guest; the next `deliver` delivers all that is queued. */
  finish(op: number): void;
  deliver(): void;
  /** Takes back the memory of `op`. */
  end(op: number): void;
  /**
   * How the rest of `op` is to be transferred. 0: directly, at `operations.address` plus `done`; otherwise with this
   * many iovecs at `vectorAddress`.
   */
  vectors(op: number): number;
  vectorAddress(op: number): number;
  close(): void;
}

const COPY_BATCH = 4096;

/** A batch of grant copies that knows which request each segment belongs to. */
export class RequestCopies {
  readonly batch: GrantCopyBatch;
  /** Statistic: segments copied since the start. */
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

  /** Copies the whole batch in one call, and checks every segment's status. */
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
