// The thread that talks to xenstore and the worker that moves bytes share this: two flags and an eventfd one
// way, byte counts the other way. Neither ever waits for the other.
import { shim } from "../native/shim.ts";
import type { VchanCounts } from "./endpoint.ts";

const BUFFER_BYTES = 64;
const FLAGS = 0;
const STOP = 1;
const PEER_DEAD = 2;
const COUNTS_AT = 8;

/** Structured-cloneable. */
export interface ControlHandle {
  readonly buffer: SharedArrayBuffer;
  readonly wakeFd: number;
}

export class VchanControl {
  readonly handle: ControlHandle;
  readonly wakeFd: number;
  readonly #flags: Int32Array<SharedArrayBuffer>;
  readonly #counts: Float64Array<SharedArrayBuffer>;

  /** `wakeFd` is an eventfd, which whoever made it closes. */
  constructor(handle: ControlHandle) {
    this.handle = handle;
    this.wakeFd = handle.wakeFd;
    this.#flags = new Int32Array(handle.buffer, 0, 1);
    this.#counts = new Float64Array(handle.buffer, COUNTS_AT, 4);
  }

  static create(wakeFd: number): VchanControl {
    return new VchanControl({ buffer: new SharedArrayBuffer(BUFFER_BYTES), wakeFd });
  }

  /** Asks the worker to end what it does, soon and in order. */
  stop(): void {
    this.#raise(STOP);
  }

  /** Tells the worker that the peer's domain is gone. */
  declarePeerDead(): void {
    this.#raise(PEER_DEAD);
  }

  /** For a new session on the same worker. */
  reset(): void {
    Atomics.store(this.#flags, FLAGS, 0);
    this.drain();
    this.#counts.fill(0);
  }

  get stopped(): boolean {
    return (Atomics.load(this.#flags, FLAGS) & STOP) !== 0;
  }

  get peerDead(): boolean {
    return (Atomics.load(this.#flags, FLAGS) & PEER_DEAD) !== 0;
  }

  /** Makes the eventfd quiet again. The flags stay until `reset`. */
  drain(): void {
    shim.xt_eventfd_drain(this.wakeFd);
  }

  publish(counts: VchanCounts): void {
    this.#counts[0] = counts.bytesRead;
    this.#counts[1] = counts.bytesWritten;
    this.#counts[2] = counts.eventsSent;
    this.#counts[3] = counts.eventsReceived;
  }

  counts(): VchanCounts {
    const [bytesRead = 0, bytesWritten = 0, eventsSent = 0, eventsReceived = 0] = this.#counts;
    return { bytesRead, bytesWritten, eventsSent, eventsReceived };
  }

  #raise(flag: number): void {
    Atomics.or(this.#flags, FLAGS, flag);
    shim.xt_eventfd_signal(this.wakeFd);
  }
}
