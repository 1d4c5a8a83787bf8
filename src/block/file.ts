// Files and block devices as a block target: io_uring, or pread/pwrite where that is not allowed.
import { IoEngine, type EngineKind, type IoOp } from "../native/io-engine.ts";
import type { Image } from "./image.ts";
import type { BlockTarget, TargetInfo } from "./target.ts";

export class FileTarget implements BlockTarget {
  readonly info: TargetInfo;
  readonly done: Int32Array;
  readonly #engine: IoEngine;

  /** Serves an opened image with up to `depth` operations at once. The image stays the opener's to close. */
  constructor(image: Image, depth: number, engine: EngineKind = "uring") {
    this.info = image.info;
    this.#engine = IoEngine.open(image.fd, depth, engine, image.isBlockDevice);
    this.done = this.#engine.done;
  }

  /** Which engine it runs on. */
  get engine(): EngineKind {
    return this.#engine.kind;
  }

  submit(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    this.#engine.submit(op, tag, offset, length, address);
  }

  run(wait: number, timeoutUs: number): number {
    return this.#engine.run(wait, timeoutUs);
  }

  watch(fd: number, tag: number): void {
    this.#engine.watch(fd, tag);
  }

  close(): void {
    this.#engine.close();
  }
}
