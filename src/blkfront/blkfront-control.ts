// The layout of a frontend's control page: how far the plane may go, and the facts about the disk.
import type { ControlPage } from "../plane/control-page.ts";
import type { Disk } from "./handshake.ts";

/** The backend serves the ring: `disk` is valid. */
const RUN = 1;
/** Finish what is in flight, take nothing new. */
const STOP = 2;
/** The backend has let go: close everything. */
const RELEASE = 4;

export class FrontControl {
  readonly #page: ControlPage;

  constructor(page: ControlPage) {
    this.#page = page;
  }

  /** Readable after an order or a new size. */
  get wakeFd(): number {
    return this.#page.wakeFd;
  }

  start(disk: Disk): void {
    this.disk = disk;
    this.#page.raise(RUN);
  }

  stop(): void {
    this.#page.raise(STOP);
  }

  release(): void {
    this.#page.raise(RELEASE);
  }

  /** The job may go on. */
  get runs(): boolean {
    return this.#page.isRaised(RUN) && !this.stops;
  }

  get stops(): boolean {
    return this.#page.isRaised(STOP | RELEASE);
  }

  get released(): boolean {
    return this.#page.isRaised(RELEASE);
  }

  /** Blocks until there is a disk, or will never be one. */
  awaitDisk(): void {
    this.#page.await(RUN | STOP | RELEASE);
  }

  awaitRelease(): void {
    this.#page.await(RELEASE);
  }

  drain(): void {
    this.#page.drain();
  }

  /** Only the size changes while a disk is in use. */
  set disk(disk: Disk) {
    this.#page.numbers.set([
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
    this.#page.wake();
  }

  get disk(): Disk {
    const facts = Array.from(this.#page.numbers);
    const fact = (index: number): number => facts[index];
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
}
