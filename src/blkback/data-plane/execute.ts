// Carries out operations on the target: translates each step into a target operation, starts the step that follows
// its completion, and resubmits the rest of a short transfer.
import type { BlockTarget } from "../../block/target.ts";
import {
  IO_DISCARD,
  IO_FLUSH,
  IO_READ,
  IO_READV,
  IO_SECURE_DISCARD,
  IO_WRITE,
  IO_WRITEV,
} from "../../native/reactor.ts";
import type { DataPath } from "./data/path.ts";
import { STAGE_IO, STAGE_POST_FLUSH, STAGE_PRE_FLUSH, type OperationTable } from "./operations.ts";
import { KIND_BARRIER, KIND_DISCARD, KIND_FLUSH, KIND_READ, KIND_SECURE_DISCARD } from "./requests.ts";

const EINTR = -4;
const EIO = -5;
const EAGAIN = -11;
/**
 * A transfer or discard that ended with EINTR or EAGAIN did nothing that matters, nor is anything wrong with the image:
 * FUSE's servers may be interrupted, and Linux' SCSI disks at times put off what io_uring asks for. But it is not tried
 * for ever, if nothing else comes of it; and a flush not at all: the kernel reports lost pages once, and such an errno
 * may have taken the place of that report.
 */
const TRIES_MAX = 1000;

/** What `advance` returns besides -errno: everything is done, or the next step is in progress. */
export const DONE = 0;
export const UNDER_WAY = 1;

export class Executor {
  /** Steps submitted to the target since the owner last reset this to 0. */
  submitted = 0;
  readonly #operations: OperationTable;
  readonly #path: DataPath;
  readonly #target: BlockTarget;

  constructor(operations: OperationTable, path: DataPath, target: BlockTarget) {
    this.#operations = operations;
    this.#path = path;
    this.#target = target;
  }

  /** Submits the current step of `op`. */
  submit(op: number): void {
    const operations = this.#operations;
    const kind = operations.kind[op];
    const start = operations.start[op];
    const length = operations.end[op] - start;
    this.submitted++;
    if (this.isFlushing(op)) this.#target.start(IO_FLUSH, op, 0, 0, 0);
    else if (kind === KIND_DISCARD) this.#target.start(IO_DISCARD, op, start, length, 0);
    else if (kind === KIND_SECURE_DISCARD) this.#target.start(IO_SECURE_DISCARD, op, start, length, 0);
    else this.#transfer(op, kind === KIND_READ, start, length);
  }

  /** Takes the result of the current step; returns DONE, UNDER_WAY or the -errno that ends `op`. */
  advance(op: number, result: number): number {
    const operations = this.#operations;
    const kind = operations.kind[op];
    if ((result === EINTR || result === EAGAIN) && !this.isFlushing(op)) return this.#tryAgain(op, result);
    if (result < 0) return result;
    if (!this.isFlushing(op) && kind !== KIND_DISCARD && kind !== KIND_SECURE_DISCARD) {
      const done = operations.done[op] + result;
      operations.done[op] = done;
      if (done < operations.end[op] - operations.start[op]) {
        // Nothing was transferred: the image ends here.
        if (result === 0) return EIO;
        this.submit(op);
        return UNDER_WAY;
      }
    }
    if (kind !== KIND_BARRIER || operations.stage[op] === STAGE_POST_FLUSH) return DONE;
    operations.stage[op] = operations.stage[op] === STAGE_PRE_FLUSH ? STAGE_IO : STAGE_POST_FLUSH;
    this.submit(op);
    return UNDER_WAY;
  }

  /** Whether the current step of `op` is a flush. */
  isFlushing(op: number): boolean {
    const { kind, stage } = this.#operations;
    return kind[op] === KIND_FLUSH || (kind[op] === KIND_BARRIER && stage[op] !== STAGE_IO);
  }

  #tryAgain(op: number, errno: number): number {
    const { tries } = this.#operations;
    if (tries[op] === TRIES_MAX) return errno;
    tries[op]++;
    this.submit(op);
    return UNDER_WAY;
  }

  #transfer(op: number, reads: boolean, start: number, length: number): void {
    const operations = this.#operations;
    const path = this.#path;
    const done = operations.done[op];
    const vectors = path.vectors(op);
    if (vectors === 0) {
      const address = operations.address[op] + done;
      this.#target.start(reads ? IO_READ : IO_WRITE, op, start + done, length - done, address);
    } else {
      const address = path.vectorAddress(op);
      this.#target.start(reads ? IO_READV : IO_WRITEV, op, start + done, vectors, address);
    }
  }
}
