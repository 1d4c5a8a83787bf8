// A batch of grant copies that knows which request each of them belongs to. A copy that fails marks its own request.
import { GrantCopyBatch } from "../../../native/grant-copy.ts";
import type { GrantTable } from "../../../platform/platform.ts";
import { COPY_BATCH } from "../../bounds.ts";
import type { SegmentSource } from "./path.ts";

export class RequestCopies implements SegmentSource {
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
