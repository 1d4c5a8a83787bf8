// The descriptors that a server waits for, as poll(2) wants them (struct pollfd), filled in anew each time.
import { XT_POLL, XT_POLL_ERROR, XT_POLL_HANGUP, XT_POLL_IN, XT_POLL_OUT } from "../native/abi.ts";
import { allocateMemory, type Mapping } from "../native/memory.ts";
import { check, shim, type Pointer } from "../native/shim.ts";

export const POLLIN = XT_POLL_IN;
export const POLLOUT = XT_POLL_OUT;
export const POLL_GONE = XT_POLL_ERROR | XT_POLL_HANGUP;

// Offsets of the fields of struct xt_poll, in words or half-words.
const WORDS = XT_POLL.bytes / 4;
const HALVES = XT_POLL.bytes / 2;
const FD = XT_POLL.fd / 4;
const EVENTS = XT_POLL.events / 2;
const SEEN = XT_POLL.seen / 2;

export class PollSet {
  readonly #memory: Mapping;
  readonly #fds: Int32Array;
  readonly #events: Int16Array;
  #count = 0;

  constructor(capacity: number) {
    this.#memory = allocateMemory(capacity * XT_POLL.bytes);
    this.#fds = new Int32Array(this.#memory.bytes.buffer);
    this.#events = new Int16Array(this.#memory.bytes.buffer);
  }

  clear(): void {
    this.#count = 0;
  }

  /** Also waits for `events` of `fd`. Returns its index in the set. Errors and hang-ups are always reported. */
  add(fd: number, events: number): number {
    const index = this.#count++;
    this.#fds[index * WORDS + FD] = fd;
    this.#events[index * HALVES + EVENTS] = events;
    this.#events[index * HALVES + SEEN] = 0;
    return index;
  }

  /** Waits at most `timeoutMs` (-1: for ever). True when something is ready. A signal also ends the wait. */
  wait(timeoutMs: number): boolean {
    return (
      check(shim.xt_poll(this.#memory.address as Pointer, this.#count, timeoutMs), "wait for clients") > 0
    );
  }

  /** The events at index `index`. */
  seen(index: number): number {
    return this.#events[index * HALVES + SEEN];
  }

  close(): void {
    this.#memory.close();
  }
}
