// The I/O engine of csrc/io.c: operations on one file, and the one place where a data plane waits. Tables
// are allocated once; nothing here allocates, throws or awaits per operation.
import { allocateMemory, type Mapping } from "./memory.ts";
import { check, errnoName, shim, type Pointer } from "./shim.ts";

export const IO_READ = 0;
export const IO_WRITE = 1;
export const IO_FLUSH = 2;
export const IO_DISCARD = 3;
export const IO_SECURE_DISCARD = 4;
export const IO_READV = 5;
export const IO_WRITEV = 6;
export const IO_DELAY = 7;
export type IoOp = 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7;

export type EngineKind = "uring" | "sync";

const OP_BYTES = 32;
const DONE_BYTES = 8;
const MAX_WATCHES = 8;

export class IoEngine {
  readonly kind: EngineKind;
  readonly depth: number;
  /** Completions of the last `run`: tag and result in turn. */
  readonly done: Int32Array;
  readonly #handle: Pointer;
  readonly #ops: Mapping;
  readonly #f64: Float64Array;
  readonly #u32: Uint32Array;
  readonly #done: Mapping;
  readonly #doneMax: number;
  #queued = 0;
  #closed = false;

  private constructor(handle: Pointer, kind: EngineKind, depth: number) {
    this.#handle = handle;
    this.kind = kind;
    this.depth = depth;
    this.#doneMax = depth + MAX_WATCHES;
    this.#ops = allocateMemory(depth * OP_BYTES);
    this.#f64 = new Float64Array(this.#ops.bytes.buffer);
    this.#u32 = this.#ops.words;
    this.#done = allocateMemory(this.#doneMax * DONE_BYTES);
    this.done = new Int32Array(this.#done.bytes.buffer);
  }

  /**
   * An engine for up to `depth` operations at once on the open file `fd` (-1: it only waits). `uring` falls
   * back to `sync` where the kernel or a sandbox forbids io_uring; `kind` tells which it became.
   */
  static open(fd: number, depth: number, kind: EngineKind = "uring", isBlockDevice = false): IoEngine {
    const block = isBlockDevice ? 1 : 0;
    if (kind === "uring") {
      const handle = shim.xt_io_open(fd, depth, 0, block);
      if (handle >= 0) return new IoEngine(handle as Pointer, "uring", depth);
      if (!["EPERM", "EACCES", "ENOSYS", "ENOMEM", "EINVAL"].includes(errnoName(handle)))
        check(handle, "set up io_uring");
    }
    const handle = check(shim.xt_io_open(fd, depth, 1, block), "set up an I/O engine");
    return new IoEngine(handle as Pointer, "sync", depth);
  }

  /** Reports `tag` whenever `fd` is readable. Up to 8, until the engine is closed. */
  watch(fd: number, tag: number): void {
    check(shim.xt_io_watch(this.#handle, fd, tag), "watch a descriptor");
  }

  /** Queues an operation for the next `run`. Numbers are bytes; see csrc/xentool.h for each operation's. */
  submit(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    const at = this.#queued++;
    const f64 = this.#f64;
    f64[at * 4] = offset;
    f64[at * 4 + 1] = length;
    f64[at * 4 + 2] = address;
    this.#u32[at * 8 + 6] = op;
    this.#u32[at * 8 + 7] = tag;
  }

  /**
   * Submits what is queued, waits until `wait` completions are there or `timeoutUs` passed (-1: for ever; a
   * signal ends it too) and returns how many are in `done`, or -errno when the engine itself failed.
   */
  run(wait: number, timeoutUs: number): number {
    const count = this.#queued;
    this.#queued = 0;
    return shim.xt_io_run(
      this.#handle,
      this.#ops.address as Pointer,
      count,
      wait,
      timeoutUs,
      this.#done.address as Pointer,
      this.#doneMax,
    );
  }

  /** Waits for what is in flight, then frees everything. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    shim.xt_io_close(this.#handle);
    this.#ops.close();
    this.#done.close();
  }
}
