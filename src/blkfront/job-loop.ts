// How a job that has the whole disk to itself takes turns: responses, then new requests, then sleep.
import { Reactor } from "../native/reactor.ts";
import { check } from "../native/shim.ts";
import type { FrontControl } from "./blkfront-control.ts";
import type { FrontDataPlane } from "./data-plane.ts";

export class JobLoop implements Disposable {
  readonly #plane: FrontDataPlane;
  // A job has no files, so its reactor needs none of io_uring's memory.
  readonly #reactor = Reactor.open(1, "sync");

  /** Wakes for responses, and for what `control` says. */
  constructor(plane: FrontDataPlane, control: FrontControl) {
    this.#plane = plane;
    this.#reactor.watch(plane.doorbell.fd, () => plane.woke());
    this.#reactor.watch(control.wakeFd, () => control.drain());
  }

  /** Takes the responses that are there and publishes what they started; sleeps when there are none. */
  turn(): number {
    const plane = this.#plane;
    const responses = plane.reap();
    plane.push();
    if (responses > 0 || plane.failure !== undefined) return responses;
    if (!plane.maySleep()) return 0;
    check(this.#reactor.wait(1, -1), "wait for the backend");
    this.#reactor.dispatch();
    return 0;
  }

  [Symbol.dispose](): void {
    this.#reactor.close();
  }
}
