// An NBD export as our block target, for tests with other people's servers.
import { join } from "node:path";
import { openNbdImage, type Line } from "../../src/block/image/nbd.ts";
import type { NbdImage } from "../../src/block/image.ts";
import { beginConnection } from "../../src/block/targets/nbd/dial.ts";
import type { OnDialled } from "../../src/block/targets/nbd/link.ts";
import { resolveHost } from "../../src/block/targets/nbd/in-turn.ts";
import { WriteLog } from "../../src/block/targets/nbd/write-log.ts";
import type { BlockTarget } from "../../src/block/target.ts";
import type { SeenExport } from "../../src/block/targets/nbd/handshake.ts";
import { openTarget } from "../../src/block/targets/open.ts";
import { allocateMemory, type Mapping } from "../../src/native/memory.ts";
import { IO_DISCARD, IO_FLUSH, IO_READ, IO_WRITE, Reactor, type IoOp } from "../../src/native/reactor.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const MEMORY_BYTES = 4 * 1024 * 1024;
const DEPTH = 64;

export class NbdExport {
  readonly target: BlockTarget;
  readonly seen: SeenExport;
  readonly memory: Mapping = allocateMemory(MEMORY_BYTES);
  readonly #reactor = Reactor.open(DEPTH, "uring", 40);
  readonly #ends: (readonly [number, number])[] = [];
  readonly #close: () => void;

  private constructor(image: NbdImage) {
    this.seen = image.seen;
    const onEnd = (tag: number, result: number): void => void this.#ends.push([tag, result]);
    const dial = (onDialled: OnDialled): void => onDialled(beginConnection(image.address));
    const opened = openTarget(image, this.#reactor, DEPTH, onEnd, {
      holdMs: 0,
      isTakenOver: false,
      dial,
      openLog,
    });
    this.target = opened.target;
    this.#close = () => opened.close(true);
  }

  /** As `serve` opens it for a disk with sectors of 512 bytes. */
  static async open(uri: string, connections = 4, readOnly = false, line?: Line): Promise<NbdExport> {
    const how = { readOnly, sectorSizeBytes: 512, connections, line };
    const image = await openNbdImage(uri, how);
    const [address] = await resolveHost(image.address);
    return new NbdExport({ ...image, address: { ...image.address, address } });
  }

  /** The results of the next `count` operations that end, in the order of their tags. */
  ended(count: number): readonly number[] {
    while (this.#ends.length < count) {
      this.#reactor.wait(1, 1_000_000);
      this.#reactor.dispatch();
    }
    const ends = this.#ends.splice(0).sort((a, b) => a[0] - b[0]);
    return ends.map(([, result]) => result);
  }

  /** Goes on after a short transfer, as the executor of blkback does. */
  write(offset: number, bytes: Uint8Array): number {
    this.memory.bytes.set(bytes);
    return this.#transfer(IO_WRITE, offset, bytes.length);
  }

  read(offset: number, length: number): Uint8Array | number {
    const error = this.#transfer(IO_READ, offset, length);
    return error < 0 ? error : this.memory.bytes.slice(0, length);
  }

  flush(): number {
    return this.one(IO_FLUSH, 0, 0);
  }

  discard(offset: number, length: number): number {
    return this.one(IO_DISCARD, offset, length);
  }

  one(op: IoOp, offset: number, length: number, at = 0): number {
    this.target.start(op, 1, offset, length, this.memory.address + at);
    return this.ended(1)[0];
  }

  close(): void {
    this.#close();
    this.#reactor.close();
    this.memory.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #transfer(op: IoOp, offset: number, length: number): number {
    for (let done = 0; done < length;) {
      const result = this.one(op, offset + done, length - done, done);
      if (result <= 0) return result === 0 ? -5 : result;
      done += result;
    }
    return 0;
  }
}

function openLog(name: string): WriteLog {
  const dir = temporaryDirectory();
  const log = WriteLog.open(join(dir, "log"), name);
  // It stays mapped.
  removeDirectory(dir);
  return log;
}
