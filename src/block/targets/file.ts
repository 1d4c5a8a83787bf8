// Files and block devices as a block target, through operations of the reactor.
import type { IoOp, OnEnd, Reactor } from "../../native/reactor.ts";
import type { FileImage } from "../image.ts";
import type { BlockTarget, TargetInfo } from "../target.ts";

export class FileTarget implements BlockTarget {
  readonly info: TargetInfo;
  readonly #reactor: Reactor;
  readonly #file: number;
  readonly #source: number;

  /** Serves an opened image. The opener still owns the image, and closes it. */
  constructor(image: FileImage, reactor: Reactor, onEnd: OnEnd) {
    this.info = image.info;
    this.#reactor = reactor;
    this.#file = reactor.addFile(image.fd, image.isBlockDevice);
    this.#source = reactor.addSource(onEnd);
  }

  start(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    this.#reactor.start(this.#source, tag, this.#file, op, offset, length, address);
  }
}
