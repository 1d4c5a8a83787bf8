// The descriptors that a server waits for, as poll(2) wants them (struct pollfd), filled in anew each time.
import { allocateMemory, type Mapping } from "../native/memory.ts";
import { check, shim, type Pointer } from "../native/shim.ts";

export const POLLIN = 1;
export const POLLOUT = 4;
const POLLERR = 8;
const POLLHUP = 16;
export const POLL_GONE = POLLERR | POLLHUP;

const POLLFD_BYTES = 8;

export class PollSet {
  readonly #memory: Mapping;
  readonly #fds: Int32Array;
  readonly #events: Int16Array;
  #count = 0;

  constructor(capacity: number) {
    this.#memory = allocateMemory(capacity * POLLFD_BYTES);
    this.#fds = new Int32Array(this.#memory.bytes.buffer);
    this.#events = new Int16Array(this.#memory.bytes.buffer);
  }

  clear(): void {
    this.#count = 0;
  }

  /** Waits for `events` of `fd`, too; its place in the set. Errors and hang-ups are always reported. */
  add(fd: number, events: number): number {
    const index = this.#count++;
    this.#fds[index * 2] = fd;
    this.#events[index * 4 + 2] = events;
    this.#events[index * 4 + 3] = 0;
    return index;
  }

  /** Waits at most `timeoutMs` (-1: for ever); true when something is ready. A signal ends it, too. */
  wait(timeoutMs: number): boolean {
    return (
      check(shim.xt_poll(this.#memory.address as Pointer, this.#count, timeoutMs), "wait for clients") > 0
    );
  }

  /** What happened at place `index`. */
  seen(index: number): number {
    return this.#events[index * 4 + 3] as number;
  }

  close(): void {
    this.#memory.close();
  }
}
