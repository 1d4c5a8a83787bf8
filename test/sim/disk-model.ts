// What a disk may hold while it is written to and its servers are killed: for each block, what is surely there and
// every write that was asked for since and not acknowledged yet, in their order. A page is filled with one number.
import { readFileSync, writeFileSync } from "node:fs";

const BLOCK_WORDS = 1024;
/** Also what all blocks hold at first. */
const TRIMMED = 0;

export class DiskModel {
  readonly path: string;
  readonly blocks: number;
  readonly #history: number[][];
  #stamp = 0;

  /** Makes the image at `path`, full of zeroes. */
  constructor(path: string, blocks: number) {
    this.path = path;
    this.blocks = blocks;
    writeFileSync(path, new Uint8Array(blocks * BLOCK_WORDS * 4));
    this.#history = Array.from({ length: blocks }, () => [0]);
  }

  /** A write of `block` is asked for: what it writes, which nothing else does. */
  write(block: number): number {
    const stamp = ++this.#stamp;
    this.#of(block).push(stamp);
    return stamp;
  }

  acknowledge(block: number, stamp: number): void {
    const history = this.#of(block);
    history.splice(0, history.indexOf(stamp));
  }

  /** A trim of `block` is asked for: it becomes zeroes, or stays. */
  trim(block: number): void {
    this.#of(block).push(TRIMMED);
  }

  /** What `block` may hold once everything that was asked for is done: one thing, unless a trim came last. */
  expected(block: number): readonly number[] {
    const history = this.#of(block);
    return history.slice(history.findLastIndex((stamp, at) => stamp !== TRIMMED || at === 0));
  }

  /** Nothing that was asked for is done any more from now on: what is there must be what may be, and is believed. */
  settle(): void {
    this.#image().forEach((stamp, block) => {
      const history = this.#of(block);
      if (!history.includes(stamp))
        throw new Error(`block ${block} holds ${stamp}: it may hold ${history.join(", ")}`);
      this.#history[block] = [stamp];
    });
  }

  #of(block: number): number[] {
    return this.#history[block];
  }

  #image(): number[] {
    const bytes = readFileSync(this.path);
    const words = new Uint32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
    return Array.from({ length: this.blocks }, (_, block) =>
      stampOf(words.subarray(block * BLOCK_WORDS, (block + 1) * BLOCK_WORDS)),
    );
  }
}

/** The number that fills a page; -1 when not all of it is the same. */
export function stampOf(words: Uint32Array): number {
  const [stamp = -1] = words;
  return words.every((word) => word === stamp) ? stamp : -1;
}
