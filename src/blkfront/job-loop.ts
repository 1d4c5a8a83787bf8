// How a job that has the whole queue to itself takes turns: responses, then new requests, then sleep.
import { Reactor } from "../native/reactor.ts";
import { check } from "../native/shim.ts";
import type { FrontControl } from "./blkfront-control.ts";
import type { FrontQueue } from "./queue.ts";

export class JobLoop implements Disposable {
  readonly #queue: FrontQueue;
  // A job has no files, so its reactor needs none of io_uring's memory.
  readonly #reactor = Reactor.open(1, "sync");

  /** Wakes for responses, and for what `control` says. */
  constructor(queue: FrontQueue, control: FrontControl) {
    this.#queue = queue;
    this.#reactor.watch(queue.doorbell.fd, () => queue.woke());
    this.#reactor.watch(control.wakeFd, () => control.drain());
  }

  /** Takes the responses that are there and publishes what they started; sleeps when there are none. */
  turn(): number {
    const queue = this.#queue;
    const responses = queue.reap();
    queue.push();
    if (responses > 0 || queue.failure !== undefined) return responses;
    if (!queue.maySleep()) return 0;
    check(this.#reactor.wait(1, -1), "wait for the backend");
    this.#reactor.dispatch();
    return 0;
  }

  [Symbol.dispose](): void {
    this.#reactor.close();
  }
}
