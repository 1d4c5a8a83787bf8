// The reactor of csrc/reactor.c: the one place where a data plane waits for file operations, for descriptors and for
// time. Whoever starts an operation names its source, which is called back when the operation ends. Tables are
// allocated once; nothing here allocates, throws or awaits per operation.
import {
  XT_ENGINE_POLL,
  XT_ENGINE_URING,
  XT_IO,
  XT_IO_DONE,
  XT_POLL_ERROR,
  XT_POLL_HANGUP,
  XT_POLL_IN,
  type XT_IO_DISCARD,
  type XT_IO_FLUSH,
  type XT_IO_READ,
  type XT_IO_READV,
  type XT_IO_SECURE_DISCARD,
  type XT_IO_WRITE,
  type XT_IO_WRITEV,
} from "./abi.ts";
import { allocateMemory, type Mapping } from "./memory.ts";
import { check, errnoName, shim, type Pointer } from "./shim.ts";

export {
  XT_IO_READ as IO_READ,
  XT_IO_WRITE as IO_WRITE,
  XT_IO_FLUSH as IO_FLUSH,
  XT_IO_DISCARD as IO_DISCARD,
  XT_IO_SECURE_DISCARD as IO_SECURE_DISCARD,
  XT_IO_READV as IO_READV,
  XT_IO_WRITEV as IO_WRITEV,
  XT_POLL_IN as POLLIN,
  XT_POLL_OUT as POLLOUT,
} from "./abi.ts";
/** Seen of a descriptor whose other end is gone, where any event was asked for. */
export const POLL_GONE = XT_POLL_ERROR | XT_POLL_HANGUP;
export type IoOp =
  | typeof XT_IO_READ
  | typeof XT_IO_WRITE
  | typeof XT_IO_FLUSH
  | typeof XT_IO_DISCARD
  | typeof XT_IO_SECURE_DISCARD
  | typeof XT_IO_READV
  | typeof XT_IO_WRITEV;

/** `sync`: operations are carried out within the call, for use where a kernel or a sandbox forbids io_uring. */
export type EngineKind = "uring" | "sync";

/** Called after a wait that found events of a watched descriptor, with these events. */
export type OnReady = (events: number) => void;

/** Called when an operation ends, with the tag it was started with and its result: bytes, 0 or -errno. */
export type OnEnd = (tag: number, result: number) => void;

// An operation is IO_F64 doubles or IO_U32 words large; the fields' positions are in the same units. DONE_* describe
// an end.
const IO_F64 = XT_IO.bytes / 8;
const IO_U32 = XT_IO.bytes / 4;
const OFFSET = XT_IO.offset / 8;
const LENGTH = XT_IO.length / 8;
const ADDRESS = XT_IO.address / 8;
const OP = XT_IO.op / 4;
const TAG = XT_IO.tag / 4;
const FILE = XT_IO.file / 4;
const DONE_U32 = XT_IO_DONE.bytes / 4;
const DONE_TAG = XT_IO_DONE.tag / 4;
const DONE_RESULT = XT_IO_DONE.result / 4;
const FEW_WATCHES = 8;
/**
 * A tag in the shim is the source's number shifted above the source's own tag. The last source stands for the
 * watches.
 */
const TAG_BITS = 24;
const TAG_MASK = (1 << TAG_BITS) - 1;
const WATCHES = 127;

/** Calls back once, when the time it was set for has come. Setting it again moves it. */
export class Timer {
  dueMs = Infinity;
  readonly onDue: () => void;

  constructor(onDue: () => void) {
    this.onDue = onDue;
  }
}

export class Reactor {
  readonly kind: EngineKind;
  /** When the last wait ended (performance.now). Kept because asking for the time is a system call in dom0. */
  nowMs = performance.now();
  /** What makes `nowMs` a time that all threads have in common: a thread's own time begins with it. */
  readonly originMs = Number(process.hrtime.bigint()) / 1e6 - performance.now();
  readonly #handle: Pointer;
  readonly #ops: Mapping;
  readonly #f64: Float64Array;
  readonly #u32: Uint32Array;
  readonly #doneMemory: Mapping;
  readonly #done: Int32Array;
  readonly #doneMax: number;
  readonly #sources: OnEnd[] = [];
  /** By the watch's number. */
  readonly #watches: (OnReady | undefined)[] = [];
  readonly #places: number[] = [];
  readonly #freeWatches: number[] = [];
  /** Removed since the last dispatch, which may still hold events of theirs: these numbers are not used again yet. */
  readonly #removed: number[] = [];
  readonly #timers: Timer[] = [];
  /** To be called when the next wait begins. */
  readonly #beforeWait: (() => void)[] = [];
  /** Operations ended without I/O since the last wait: source, tag and result in turn. */
  readonly #finished: number[] = [];
  /** Closed after the last operation has ended. */
  readonly #kept: { close(): void }[] = [];
  #queued = 0;
  #doneCount = 0;
  #closed = false;

  private constructor(handle: Pointer, kind: EngineKind, depth: number, maxWatches: number) {
    this.#handle = handle;
    this.kind = kind;
    this.#doneMax = depth + maxWatches;
    this.#ops = allocateMemory(depth * XT_IO.bytes);
    this.#f64 = new Float64Array(this.#ops.bytes.buffer);
    this.#u32 = this.#ops.words;
    this.#doneMemory = allocateMemory(this.#doneMax * XT_IO_DONE.bytes);
    this.#done = new Int32Array(this.#doneMemory.bytes.buffer);
  }

  /**
   * Opens a reactor for up to `depth` operations in flight and `maxWatches` watched descriptors. `uring` falls back to
   * `sync` where the kernel or a sandbox forbids io_uring; the reactor's `kind` shows which it is. Throws `io` when
   * neither is available.
   */
  static open(depth: number, kind: EngineKind = "uring", maxWatches = FEW_WATCHES): Reactor {
    if (kind === "uring") {
      const handle = shim.xt_reactor_open(depth, maxWatches, XT_ENGINE_URING);
      if (handle >= 0) return new Reactor(handle as Pointer, "uring", depth, maxWatches);
      if (!["EPERM", "EACCES", "ENOSYS", "ENOMEM", "EINVAL"].includes(errnoName(handle)))
        check(handle, "set up io_uring");
    }
    const handle = check(shim.xt_reactor_open(depth, maxWatches, XT_ENGINE_POLL), "set up an I/O engine");
    return new Reactor(handle as Pointer, "sync", depth, maxWatches);
  }

  /**
   * Registers the open file `fd`; returns the number by which operations name it. The caller still owns `fd`, and
   * must keep it open as long as the reactor.
   */
  addFile(fd: number, isBlockDevice: boolean): number {
    return check(shim.xt_reactor_add_file(this.#handle, fd, isBlockDevice ? 1 : 0), "use a file");
  }

  /** Registers a source; returns the number by which operations name it. `onEnd` is called when they end. */
  addSource(onEnd: OnEnd): number {
    return this.#sources.push(onEnd) - 1;
  }

  /**
   * Calls `onReady` after each wait that found one of `events` on `fd`, or that its other end is gone. Returns the
   * watch's number. The caller still owns `fd`.
   */
  watch(fd: number, onReady: OnReady, events: number = XT_POLL_IN): number {
    const watch = this.#freeWatches.at(-1) ?? this.#watches.length;
    const tag = (WATCHES << TAG_BITS) | watch;
    this.#places[watch] = check(shim.xt_reactor_watch(this.#handle, fd, events, tag), "watch a descriptor");
    this.#watches[watch] = onReady;
    this.#freeWatches.pop();
    return watch;
  }

  /** Changes the events of `watch`. With none, its descriptor is not looked at. */
  rewatch(watch: number, events: number): void {
    check(shim.xt_reactor_rewatch(this.#handle, this.#places[watch], events), "watch a descriptor");
  }

  /** Removes `watch`, which is not called again. Its descriptor may be closed immediately. Harmless after `close`. */
  unwatch(watch: number): void {
    if (this.#closed) return;
    check(shim.xt_reactor_unwatch(this.#handle, this.#places[watch]), "watch a descriptor no more");
    this.#watches[watch] = undefined;
    this.#removed.push(watch);
  }

  /** Calls the timer's `onDue` after the first wait that ends `ms` milliseconds from now or later. */
  setTimer(timer: Timer, ms: number): void {
    if (timer.dueMs === Infinity) this.#timers.push(timer);
    timer.dueMs = performance.now() + ms;
  }

  /**
   * Queues an operation of `source` on `file`, which the next `wait` starts. Numbers are bytes; csrc/xentool.h
   * documents what each operation takes. Never blocks, never throws.
   */
  start(
    source: number,
    tag: number,
    file: number,
    op: IoOp,
    offset: number,
    length: number,
    address: number,
  ): void {
    const at = this.#queued++;
    const f64 = this.#f64;
    const u32 = this.#u32;
    f64[at * IO_F64 + OFFSET] = offset;
    f64[at * IO_F64 + LENGTH] = length;
    f64[at * IO_F64 + ADDRESS] = address;
    u32[at * IO_U32 + OP] = op;
    u32[at * IO_U32 + TAG] = (source << TAG_BITS) | tag;
    u32[at * IO_U32 + FILE] = file;
  }

  /** Ends an operation that needs no I/O; `dispatch` reports it after the next `wait`. */
  finish(source: number, tag: number, result: number): void {
    this.#finished.push(source, tag, result);
  }

  /** Calls back once, when the next wait begins: what has come together by then can be done with one system call. */
  beforeWait(act: () => void): void {
    this.#beforeWait.push(act);
  }

  /**
   * Submits the queued operations and waits until `wanted` operations have ended, a descriptor is readable, a timer
   * is due, or `timeoutUs` has passed (-1: no limit). A signal ends the wait, too. `dispatch` then reports what was
   * found. Returns 0, or -errno when the engine itself failed. With `isPatient`, nothing is to be expected before a
   * lone transfer ends, so the call may wait for that alone.
   */
  wait(wanted: number, timeoutUs: number, isPatient = false): number {
    while (this.#beforeWait.length > 0) this.#beforeWait.pop()?.();
    const count = this.#queued;
    this.#queued = 0;
    const result = shim.xt_reactor_wait(
      this.#handle,
      this.#ops.address as Pointer,
      count,
      this.#finished.length > 0 ? 0 : wanted,
      this.#timers.length > 0 ? this.#untilTimerUs(timeoutUs) : timeoutUs,
      isPatient && this.#timers.length === 0 ? 1 : 0,
      this.#doneMemory.address as Pointer,
      this.#doneMax,
    );
    this.#doneCount = result < 0 ? 0 : result;
    this.nowMs = performance.now();
    return result < 0 ? result : 0;
  }

  /**
   * Calls back for everything that the last `wait` found: first I/O and descriptors, then `finish`ed operations, then
   * timers. Returns how many ends of I/O and events of descriptors it found.
   */
  dispatch(): number {
    const done = this.#done;
    const count = this.#doneCount;
    this.#doneCount = 0;
    for (let i = 0; i < count; i++) {
      const tag = done[i * DONE_U32 + DONE_TAG];
      const source = tag >>> TAG_BITS;
      const result = done[i * DONE_U32 + DONE_RESULT];
      if (source === WATCHES) this.#watches[tag & TAG_MASK]?.(result);
      else this.#sources[source]?.(tag & TAG_MASK, result);
    }
    if (this.#removed.length > 0) this.#freeWatches.push(...this.#removed.splice(0));
    if (this.#finished.length > 0) this.#dispatchFinished();
    if (this.#timers.length > 0) this.#dispatchTimers();
    return count;
  }

  /** Closes memory that operations in flight may still use: together with the reactor, when they have ended. */
  closeLast(memory: { close(): void }): void {
    this.#kept.push(memory);
  }

  /** Waits for operations in flight, then frees everything. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    shim.xt_reactor_close(this.#handle);
    for (const memory of this.#kept) memory.close();
    this.#ops.close();
    this.#doneMemory.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #dispatchFinished(): void {
    const finished = this.#finished.splice(0);
    for (let i = 0; i < finished.length; i += 3)
      this.#sources[finished[i]]?.(finished[i + 1], finished[i + 2]);
  }

  #dispatchTimers(): void {
    const timers = this.#timers;
    for (let i = timers.length - 1; i >= 0; i--) {
      const timer = timers[i];
      if (timer.dueMs > this.nowMs) continue;
      timers.splice(i, 1);
      timer.dueMs = Infinity;
      timer.onDue();
    }
  }

  #untilTimerUs(timeoutUs: number): number {
    const dueMs = this.#timers.reduce((first, timer) => Math.min(first, timer.dueMs), Infinity);
    const us = Math.min(2 ** 31 - 1, Math.max(0, Math.ceil((dueMs - performance.now()) * 1000)));
    return timeoutUs < 0 ? us : Math.min(us, timeoutUs);
  }
}

/**
 * Carries out one operation on an open file at once; returns its result or -errno. For probing, not for a data plane.
 */
export function performIo(
  fd: number,
  isBlockDevice: boolean,
  op: IoOp,
  offset: number,
  length: number,
  address: number,
): number {
  using memory = allocateMemory(XT_IO.bytes);
  const f64 = new Float64Array(memory.bytes.buffer);
  f64[OFFSET] = offset;
  f64[LENGTH] = length;
  f64[ADDRESS] = address;
  memory.words[OP] = op;
  return shim.xt_file_perform(fd, isBlockDevice ? 1 : 0, memory.address as Pointer);
}
