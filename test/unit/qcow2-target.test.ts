// A qcow2 target with a daemon that does its worst (qcow2-model-daemon.ts), under random requests: the guest reads what
// it wrote, also when the daemon has died; what was flushed is in the file's tables; and nothing is written where the
// daemon keeps what is its own.
import { expect, test } from "bun:test";
import { closeSync, openSync, readSync, rmSync } from "node:fs";
import { join } from "node:path";
import { Qcow2Target } from "../../src/block/targets/qcow2/target.ts";
import { allocateMemory } from "../../src/native/memory.ts";
import {
  IO_DISCARD,
  IO_FLUSH,
  IO_READ,
  IO_READV,
  IO_WRITE,
  IO_WRITEV,
  Reactor,
  type IoOp,
} from "../../src/native/reactor.ts";
import { shim } from "../../src/native/shim.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { CLUSTER } from "./qcow2-image.ts";
import { ModelDaemon } from "./qcow2-model-daemon.ts";

const RUNS = Number(process.env["RUNS"] ?? 40);
const STEPS = 1500;
const DEPTH = 12;
const SECTOR = 512;
const MOST_BYTES = 4 * CLUSTER;
/** Guest clusters that are used: at the borders of tables, so that requests reach over them. */
const USED = [...Array(12).keys()].flatMap((at) => [at, 506 + at, 1018 + at]);
const AREAS = [0, 506, 1018].map((first) => ({ from: first * CLUSTER, to: (first + 12) * CLUSTER }));

interface Request {
  readonly op: IoOp;
  readonly from: number;
  readonly to: number;
  readonly stamp: number;
  done: number;
  /** A trim and something else are under way in the same place: nobody knows what comes of it. */
  isDoubtful: boolean;
}

class World {
  readonly #dir = temporaryDirectory();
  readonly #path = join(this.#dir, "disk.qcow2");
  readonly #fd = openSync(this.#path, "w+");
  readonly #reactor = Reactor.open(DEPTH + 2, "sync");
  readonly #memory = allocateMemory(DEPTH * 2 * MOST_BYTES);
  readonly #random: Random;
  readonly #daemon: ModelDaemon;
  readonly #target: Qcow2Target<ModelDaemon>;
  readonly #requests: (Request | undefined)[] = Array.from({ length: DEPTH }, () => undefined);
  /** By sector: what it surely holds; absent: nobody knows. */
  readonly #known = new Map<number, number>();
  #shared: { host: number; bytes: Buffer }[] = [];
  #hasSnapshot = false;
  /** Whether trims are under way beside others in the same place, as no guest's are that the scheduler lets pass. */
  readonly #overlaps: boolean;
  readonly #waits: number;
  #stamp = 0;
  /** Requests that were carried out in place. */
  inPlace = 0;

  constructor(random: Random) {
    this.#random = random;
    this.#overlaps = random.chance(0.3);
    this.#waits = random.pick([0.1, 0.5]);
    const allocated = USED.filter(() => random.chance(0.7));
    const { shared } = ModelDaemon.format(this.#fd, allocated, random);
    for (const cluster of USED)
      for (let sector = 0; sector < 8; sector++) this.#known.set(cluster * 8 + sector, 0);
    this.#keep(shared);
    const file = {
      file: this.#reactor.addFile(this.#fd, false),
      sizeBytes: () => shim.xt_file_size(this.#fd),
    };
    let daemon: ModelDaemon | undefined;
    const openDaemon = (onEnd: (tag: number, result: number) => void) => {
      daemon = new ModelDaemon(this.#fd, random, onEnd);
      daemon.open(shared);
      return { target: daemon, remote: daemon };
    };
    this.#target = new Qcow2Target({ file, openDaemon, depth: DEPTH }, this.#reactor, (tag, result) =>
      this.#ended(tag, result),
    );
    this.#daemon = daemon as unknown as ModelDaemon;
  }

  run(): void {
    const random = this.#random;
    for (let step = 0; step < STEPS; step++) {
      if (random.chance(0.6)) this.#ask();
      while (random.chance(0.5)) this.#daemon.step();
      if (random.chance(this.#waits)) {
        this.#wait();
        if (!this.#daemon.isServing) this.#lend();
      }
      if (random.chance(0.02)) this.#check();
    }
    this.#finish();
    const sync = this.#free();
    this.#begin(sync, { op: IO_FLUSH, from: 0, to: 0, stamp: 0, done: 0, isDoubtful: false });
    this.#finish();
    this.#check();
    for (const [sector, stamp] of this.#known) {
      const bytes = ModelDaemon.readStable(this.#fd, sector * SECTOR, SECTOR);
      if (stampOf(bytes) !== stamp)
        throw new Error(`sector ${sector} has ${stampOf(bytes)}, not ${stamp}, in the file`);
    }
  }

  close(): void {
    this.#target.close(true);
    this.#reactor.close();
    this.#memory.close();
    closeSync(this.#fd);
    rmSync(this.#path);
    removeDirectory(this.#dir);
  }

  #ask(): void {
    const random = this.#random;
    const tag = this.#free();
    if (tag < 0) return;
    const op = random.pick([IO_READ, IO_READV, IO_WRITE, IO_WRITE, IO_WRITEV, IO_DISCARD, IO_FLUSH] as const);
    if (op === IO_FLUSH)
      return this.#begin(tag, { op, from: 0, to: 0, stamp: 0, done: 0, isDoubtful: false });
    const area = random.pick(AREAS);
    const sectors = 1 + random.below(random.pick([8, 8, 24]));
    const from = area.from + random.below((area.to - area.from) / SECTOR - sectors) * SECTOR;
    const to = from + sectors * SECTOR;
    const met = this.#requests.filter((it) => it !== undefined && it.from < to && from < it.to) as Request[];
    const mayMeet = ({ op: other }: Request): boolean => (op === IO_DISCARD) !== (other === IO_DISCARD);
    if (met.length > 0 && (!this.#overlaps || !met.every(mayMeet))) return;
    for (const it of met) it.isDoubtful = true;
    const writes = op === IO_WRITE || op === IO_WRITEV;
    const isDoubtful = met.length > 0;
    this.#begin(tag, { op, from, to, stamp: writes ? ++this.#stamp : 0, done: 0, isDoubtful });
  }

  #begin(tag: number, request: Request): void {
    const { op, from, to, stamp } = request;
    this.#requests[tag] = request;
    if (op === IO_WRITE || op === IO_WRITEV) {
      this.#data(tag).fill(stamp);
      for (let sector = from / SECTOR; sector < to / SECTOR; sector++) this.#known.delete(sector);
    } else this.#data(tag).fill(0xffff_ffff);
    this.#start(tag, request);
  }

  #start(tag: number, { op, from, to, done }: Request): void {
    const address = this.#address(tag) + done;
    const left = to - from - done;
    if (op === IO_READV || op === IO_WRITEV) {
      const vectors = this.#address(tag) + MOST_BYTES;
      const view = new DataView(this.#memory.bytes.buffer, tag * 2 * MOST_BYTES + MOST_BYTES);
      const count = left / SECTOR;
      for (let at = 0; at < count; at++) {
        view.setBigUint64(at * 16, BigInt(address + at * SECTOR), true);
        view.setBigUint64(at * 16 + 8, BigInt(SECTOR), true);
      }
      this.#target.start(op, tag, from + done, count, vectors);
    } else this.#target.start(op, tag, from + done, left, op === IO_DISCARD || op === IO_FLUSH ? 0 : address);
  }

  #ended(tag: number, result: number): void {
    const request = this.#requests[tag] as Request;
    const { op, from, to, stamp, isDoubtful } = request;
    const transfers = op !== IO_DISCARD && op !== IO_FLUSH;
    if (result >= 0 && transfers) {
      if (result === 0 || result > to - from - request.done)
        throw new Error(`${result} bytes of ${to - from}`);
      request.done += result;
      if (request.done < to - from) return this.#start(tag, request);
    }
    this.#requests[tag] = undefined;
    const writes = op === IO_WRITE || op === IO_WRITEV;
    for (let sector = from / SECTOR; sector < to / SECTOR; sector++) {
      if (op === IO_DISCARD || isDoubtful) this.#known.delete(sector);
      else if (writes && result >= 0) this.#known.set(sector, stamp);
      else if (!writes) this.#checkSector(tag, sector, sector - from / SECTOR);
    }
  }

  #checkSector(tag: number, sector: number, at: number): void {
    const expected = this.#known.get(sector);
    const words = this.#data(tag).subarray((at * SECTOR) / 4, ((at + 1) * SECTOR) / 4);
    const found = words.every((word) => word === words[0]) ? words[0] : -1;
    if (expected !== undefined && found !== expected)
      throw new Error(`sector ${sector} was read as ${found}, not ${expected}`);
  }

  #wait(): void {
    this.#reactor.wait(0, 0);
    this.inPlace += this.#reactor.dispatch();
  }

  #finish(): void {
    for (let rounds = 0; this.#requests.some((it) => it !== undefined) || !this.#daemon.isIdle; rounds++) {
      if (rounds > 10_000) throw new Error("something is never answered");
      this.#daemon.step();
      this.#wait();
    }
  }

  /** What is not the guest's is as it was. */
  #check(): void {
    this.#daemon.check();
    for (const { host, bytes } of this.#shared)
      if (!this.#cluster(host).equals(bytes)) throw new Error(`cluster ${host} of a snapshot was written`);
  }

  /** While the daemon is away, somebody else may have the image. */
  #lend(): void {
    if (!this.#hasSnapshot && this.#random.chance(0.3)) {
      this.#hasSnapshot = true;
      this.#keep(this.#daemon.takeSnapshot());
    } else if (this.#random.chance(0.5)) this.#daemon.loseMarks();
  }

  #keep(shared: readonly number[]): void {
    this.#shared = shared.map((host) => ({ host, bytes: this.#cluster(host) }));
  }

  #cluster(host: number): Buffer {
    const bytes = Buffer.alloc(CLUSTER);
    readSync(this.#fd, bytes, 0, CLUSTER, host * CLUSTER);
    return bytes;
  }

  #free(): number {
    return this.#requests.indexOf(undefined);
  }

  #address(tag: number): number {
    return this.#memory.address + tag * 2 * MOST_BYTES;
  }

  #data(tag: number): Uint32Array {
    return new Uint32Array(this.#memory.bytes.buffer, tag * 2 * MOST_BYTES, MOST_BYTES / 4);
  }
}

function stampOf(bytes: Buffer): number {
  const [first, ...rest] = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  return rest.every((word) => word === first) ? (first as number) : -1;
}

test(
  "random requests, a daemon that does its worst",
  () => {
    const seed = chosenSeed();
    console.log(`qcow2 target: SEED=${seed}`);
    const random = new Random(seed);
    let inPlace = 0;
    for (let run = 0; run < RUNS; run++) {
      const world = new World(random);
      try {
        world.run();
      } finally {
        world.close();
      }
      inPlace += world.inPlace;
    }
    // Not that everything went through the daemon.
    expect(inPlace).toBeGreaterThan(RUNS * 100);
  },
  RUNS * 5000,
);
