// What the thread that talks to xenstore tells the worker that moves data, while that one blocks: a command,
// the disk's facts, and an eventfd that makes it look.
import { closeSync } from "node:fs";
import { check, shim } from "../native/shim.ts";
import type { Disk } from "./handshake.ts";

/** Structured-cloneable. */
export interface ControlHandle {
  readonly buffer: SharedArrayBuffer;
  readonly wakeFd: number;
}

/** In this order only. */
export const COMMAND_WAIT = 0;
/** The backend serves the ring: `disk` is known. */
export const COMMAND_RUN = 1;
/** Finish what is under way, take nothing new. */
export const COMMAND_STOP = 2;
/** The backend has let go: close everything. */
export const COMMAND_RELEASE = 3;

const FACTS_AT = 8;
const FACTS = 10;

export class FrontControl {
  readonly handle: ControlHandle;
  readonly #command: Int32Array<SharedArrayBuffer>;
  readonly #facts: Float64Array<SharedArrayBuffer>;

  constructor(handle: ControlHandle) {
    this.handle = handle;
    this.#command = new Int32Array(handle.buffer, 0, 1);
    this.#facts = new Float64Array(handle.buffer, FACTS_AT, FACTS);
  }

  /** A new one; whoever made it closes it, once the worker is done with it. */
  static create(): FrontControl {
    const wakeFd = check(shim.xt_eventfd(), "make an eventfd");
    return new FrontControl({ buffer: new SharedArrayBuffer(FACTS_AT + FACTS * 8), wakeFd });
  }

  /** Readable after a command or a new size. */
  get wakeFd(): number {
    return this.handle.wakeFd;
  }

  get command(): number {
    return Atomics.load(this.#command, 0);
  }

  send(command: number): void {
    Atomics.store(this.#command, 0, command);
    shim.xt_eventfd_signal(this.wakeFd);
  }

  /** Blocks until `command`, or one after it, was sent; which one. */
  await(command: number): number {
    const fds = new Int32Array([this.wakeFd]);
    while (this.command < command) {
      shim.xt_wait(fds, 1, -1);
      this.drain();
    }
    return this.command;
  }

  drain(): void {
    shim.xt_eventfd_drain(this.wakeFd);
  }

  /** Facts that change while a disk is in use: its size only. Set them before COMMAND_RUN. */
  set disk(disk: Disk) {
    this.#facts.set([
      disk.sectors512,
      disk.logicalSectorBytes,
      disk.physicalSectorBytes,
      Number(disk.readOnly),
      Number(disk.cdrom),
      Number(disk.canFlush),
      Number(disk.canBarrier),
      Number(disk.canDiscard),
      Number(disk.canSecureDiscard),
      disk.discardGranularityBytes,
    ]);
    shim.xt_eventfd_signal(this.wakeFd);
  }

  get disk(): Disk {
    const facts = Array.from(this.#facts);
    const fact = (index: number): number => facts[index] as number;
    return {
      sectors512: fact(0),
      logicalSectorBytes: fact(1),
      physicalSectorBytes: fact(2),
      readOnly: fact(3) === 1,
      cdrom: fact(4) === 1,
      canFlush: fact(5) === 1,
      canBarrier: fact(6) === 1,
      canDiscard: fact(7) === 1,
      canSecureDiscard: fact(8) === 1,
      discardGranularityBytes: fact(9),
    };
  }

  close(): void {
    closeSync(this.wakeFd);
  }
}
