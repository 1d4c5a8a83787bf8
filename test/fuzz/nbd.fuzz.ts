// Random clients of the NBD server, several at once, against models of the protocol and of the disk. The real server
// runs its real loop on real sockets, in this thread: once a turn it asks whether it may go on, and there the clients
// and the backend take their steps. So a seed repeats a run exactly.
import { join } from "node:path";
import { FrontControl } from "../../src/blkfront/blkfront-control.ts";
import { NbdConnection } from "../../src/blkfront/nbd-connection.ts";
import { NbdServer } from "../../src/blkfront/nbd-server.ts";
import { listenAt } from "../../src/native/unix-listener.ts";
import { ControlPage } from "../../src/plane/control-page.ts";
import { ABI_X86_32, ABI_X86_64 } from "../../src/protocol/blkif.ts";
import { Random } from "../support/random.ts";
import { FakeBackend } from "../unit/blkfront-fake-backend.ts";
import { DiskModel } from "./nbd-disk-model.ts";
import { FuzzClient } from "./nbd-fuzz-client.ts";
import * as nbd from "./nbd-protocol-model.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { openDescriptors } from "../support/descriptors.ts";

const MAGIC = 0x25609513;
const EPISODE_REQUESTS = 400;
const CLIENTS = 6;
const DISK_BYTES = 4 << 20;
const SIZES = [1, 1, 2, 7, 8, 16, 64, 256, 300, 700, 5000];
/** Turns in which nothing happens although everybody does what they can. */
const PATIENCE = 20;
const TYPES = [
  nbd.READ,
  nbd.READ,
  nbd.READ,
  nbd.WRITE,
  nbd.WRITE,
  nbd.WRITE,
  nbd.FLUSH,
  nbd.TRIM,
  nbd.WRITE_ZEROES,
];

/** Calls `onTurn` once in each turn of the server's loop, which never sleeps. */
class TurnControl extends FrontControl {
  readonly #onTurn: () => boolean;

  constructor(page: ControlPage, onTurn: () => boolean) {
    super(page);
    this.#onTurn = onTurn;
    page.wake();
  }

  override get runs(): boolean {
    return this.#onTurn();
  }

  /** The eventfd stays readable, so that no wait lasts. */
  override drain(): void {}
}

/** One server from its start to its end, with its clients and its backend. */
class Episode {
  readonly #random: Random;
  readonly #path: string;
  readonly #backend: FakeBackend;
  readonly #disk: DiskModel;
  readonly #cleanup = new DisposableStack();
  readonly #server: NbdServer;
  readonly #wanted: number;
  /** Stops the server while it has work, instead of waiting for its clients. */
  readonly #stopsEarly: boolean;
  #clients: FuzzClient[] = [];
  #connected = 0;
  #requests = 0;
  #cookies = 0n;
  #idleTurns = 0;
  #closedBefore = closedConnections;

  constructor(random: Random, noise: Uint8Array, path: string, wanted: number) {
    this.#random = random;
    this.#path = path;
    this.#wanted = wanted;
    this.#stopsEarly = random.chance(0.2);
    const cleanup = this.#cleanup;
    const poolPages = random.pick([15, 40, 100, 480]);
    this.#backend = cleanup.adopt(
      new FakeBackend({
        abi: random.pick([ABI_X86_64, ABI_X86_32]),
        ringPages: random.pick([1, 2]),
        poolPages,
        maxIndirectSegments: random.pick([0, 32, 256]),
      }),
      (it) => it.close(),
    );
    const disk = randomDisk(random, poolPages === 15 ? 32 << 10 : 128 << 10);
    this.#disk = new DiskModel(disk, this.#backend, random, noise);
    this.#disk.failing = random.pick([0, 0, 0.02, 0.2]);
    const page = cleanup.adopt(ControlPage.create(), (it) => it.close());
    const listener = cleanup.adopt(listenAt(path), (it) => it.close());
    const control = new TurnControl(page, () => this.#turn());
    control.disk = disk;
    const { plane, slots } = this.#backend;
    this.#server = new NbdServer(plane, slots, control, listener.fd, nbd.EXPORT);
  }

  run(): void {
    try {
      this.#server.run();
      const { plane, pool } = this.#backend;
      if (plane.failure !== undefined) throw new Error(plane.failure);
      if (pool.freePages !== pool.pageCount) throw new Error("pages of the pool are not given back");
    } finally {
      for (const client of this.#clients) client.leave();
      this.#server.close();
      this.#cleanup.dispose();
    }
    this.#disk.compare();
  }

  /** Connections that the server has not buried. */
  #placesTaken(): number {
    return this.#connected - (closedConnections - this.#closedBefore);
  }

  /** What happens outside of the server while it makes one turn. False: it has to stop. */
  #turn(): boolean {
    const isLast = this.#requests >= this.#wanted;
    if (isLast && this.#stopsEarly) {
      this.#disk.turn(true);
      return false;
    }
    const isDiskBusy = this.#disk.turn(isLast);
    const moved = this.#clients.reduce((sum, client) => sum + this.#move(client, isLast), 0);
    this.#clients = this.#clients.filter((client) => !client.isClosed);
    const isEachOpen = !this.#clients.some((client) => client.mayBeClosed);
    if (isEachOpen && this.#placesTaken() === this.#clients.length) this.#disk.settleOrphans();
    if (!isLast) {
      this.#act();
      return true;
    }
    this.#idleTurns = moved > 0 || isDiskBusy ? 0 : this.#idleTurns + 1;
    return this.#idleTurns < PATIENCE || this.#goOn();
  }

  /** Nothing happens any more. True when silent clients were woken, so that something will. */
  #goOn(): boolean {
    const isStanding = this.#clients.some((client) => !client.isSilent);
    if (isStanding)
      throw new Error(`the server stands still: ${this.#clients.map((it) => it.describe()).join(" | ")}`);
    for (const client of this.#clients) client.isSilent = false;
    this.#idleTurns = 0;
    if (this.#clients.length > 0) return true;
    if (this.#placesTaken() !== 0) throw new Error(`${this.#placesTaken()} places are not given back`);
    if (this.#backend.plane.inFlight !== 0) throw new Error("slots of the ring are not given back");
    return false;
  }

  /** Moves some bytes of `client`, or all of them. Returns how many went. */
  #move(client: FuzzClient, isLast: boolean): number {
    const random = this.#random;
    if (isLast && client.isSilent) return 0;
    if (isLast && !client.isEnding) this.#finish(client);
    const size = (): number => (isLast ? 2 ** 30 : random.pick([0, 1, 1 + random.below(60), 5000, 2 ** 30]));
    return client.send(size()) + (client.isSilent ? 0 : client.receive(size()));
  }

  #finish(client: FuzzClient): void {
    if (client.handshake.phase === "transmission" && this.#random.chance(0.5)) this.#disconnect(client);
    else client.endOutput(false);
  }

  #act(): void {
    const random = this.#random;
    if (this.#clients.length < CLIENTS && random.chance(0.1)) {
      this.#clients.push(new FuzzClient(this.#path, this.#disk));
      this.#connected++;
    }
    for (const client of this.#clients) {
      const event = random.below(1000);
      const isServed = client.handshake.phase === "transmission";
      if (client.isEnding ? event < 10 : event < 3) client.leave();
      else if (client.isEnding) continue;
      else if (event < 6) client.endOutput(random.chance(0.5));
      else if (event < 9 && isServed) this.#disconnect(client);
      else if (event < 12 && isServed) client.isSilent = true;
      else if (isServed && client.unsent < 4096 && event < 500) this.#request(client);
      else if (!isServed && client.unsent === 0) client.negotiate(this.#handshakeBytes(client));
    }
  }

  #handshakeBytes(client: FuzzClient): Buffer {
    const random = this.#random;
    const bytes =
      client.handshake.phase === "flags"
        ? nbd.numbers([4, random.chance(0.95) ? random.below(4) : random.below(2 ** 32)])
        : this.#option();
    if (random.chance(0.05)) bytes[random.below(bytes.length)] = random.below(256);
    return bytes;
  }

  #option(): Buffer {
    const random = this.#random;
    const number = random.pick([
      1,
      2,
      3,
      3,
      5,
      6,
      6,
      6,
      ...Array.from({ length: 8 }, () => 7),
      8,
      8,
      8,
      8,
      8,
      8,
      10,
    ]);
    const name = Buffer.from(random.pick(["", nbd.EXPORT, nbd.EXPORT, "other", "xvdb\0"]));
    if (random.chance(0.03))
      return nbd.encodeOption(number, Buffer.alloc(random.pick([8192, 8193, 30_000]), random.below(256)));
    if (number === 1) return nbd.encodeOption(number, name);
    if (number !== 6 && number !== 7)
      return nbd.encodeOption(number, Buffer.alloc(random.chance(0.8) ? 0 : random.below(40)));
    const items = Array.from({ length: random.below(4) }, () => [2, random.below(5)] as const);
    const count = random.chance(0.95) ? items.length : random.below(65_536);
    const length = random.chance(0.95) ? name.length : random.below(2 ** 32);
    const data = Buffer.concat([nbd.numbers([4, length]), name, nbd.numbers([2, count], ...items)]);
    return nbd.encodeOption(number, data);
  }

  #disconnect(client: FuzzClient): void {
    client.disconnect(nbd.encodeRequest({ ...this.#draw(), magic: MAGIC, type: nbd.DISC }));
  }

  #request(client: FuzzClient): void {
    for (let attempt = 0; attempt < 8; attempt++) {
      const request = this.#draw();
      const isFatal =
        request.magic !== MAGIC || (request.type === nbd.WRITE && request.length > nbd.MAX_BYTES);
      const errors = nbd.errorsOf(request, this.#disk.disk, client.handshake.structured);
      if (request.type === nbd.DISC || (!isFatal && errors.size === 0 && this.#disk.isBusy(request)))
        continue;
      this.#requests++;
      return client.request(request, isFatal);
    }
  }

  /** A request that makes sense, or one with a field that may not. */
  #draw(): nbd.Request {
    const random = this.#random;
    const unit = this.#disk.disk.logicalSectorBytes;
    const units = DISK_BYTES / unit;
    const type = random.pick(TYPES);
    const count = Math.min(units, 1 + random.below(random.pick(SIZES)));
    this.#cookies += 1n;
    const request = {
      magic: MAGIC,
      flags: random.chance(0.8) ? 0 : random.pick([nbd.FUA, nbd.NO_HOLE, nbd.DF]),
      type,
      cookie: (BigInt(random.below(2 ** 32)) << 32n) | this.#cookies,
      offset: BigInt(random.below(units - count + 1) * unit),
      length: type === nbd.FLUSH ? 0 : count * unit,
    };
    if (random.chance(0.9)) return request;
    const changes: readonly Partial<nbd.Request>[] = [
      { flags: random.below(65_536) },
      { type: random.pick([5, 7, random.below(65_536)]) },
      { offset: random.pick([DISK_BYTES - unit, DISK_BYTES, random.below(DISK_BYTES)].map(BigInt)) },
      { offset: random.pick([2n ** 64n - 1n, 2n ** 63n, 2n ** 53n, 2n ** 64n - BigInt(unit)]) },
      { length: random.pick([0, 1, 511, request.length + 1, DISK_BYTES + unit]) },
      random.chance(0.2) ? { length: random.pick([2 ** 32 - 1, nbd.MAX_BYTES + 512]) } : {},
      random.chance(0.1) ? { magic: random.below(2 ** 32) } : {},
    ];
    return { ...request, ...random.pick(changes) };
  }
}

/** Of all servers so far; each connection counts once. */
let closedConnections = 0;

function randomDisk(random: Random, pieceBytes: number): nbd.ServedDisk {
  const durable = random.pick(["flush", "flush", "barrier", "none"]);
  return {
    sectors512: DISK_BYTES / 512,
    logicalSectorBytes: random.pick([512, 512, 4096]),
    physicalSectorBytes: random.pick([512, 4096, 65_536]),
    readOnly: random.chance(0.1),
    cdrom: false,
    canFlush: durable === "flush",
    canBarrier: durable !== "none",
    canDiscard: random.chance(0.8),
    canSecureDiscard: false,
    discardGranularityBytes: 4096,
    pieceBytes,
  };
}

/** Counts connections that are closed until it is disposed of: nothing else tells that a place is free again. */
function countClosings(): Disposable {
  const { close } = NbdConnection.prototype;
  NbdConnection.prototype.close = function (this: NbdConnection) {
    closedConnections++;
    close.call(this);
  };
  return { [Symbol.dispose]: () => void (NbdConnection.prototype.close = close) };
}

/** Makes at least `cases` requests. What it throws names the seed of its episode. */
export async function run(cases: number, seed: number): Promise<void> {
  using cleanup = new DisposableStack();
  cleanup.use(countClosings());
  const directory = cleanup.adopt(temporaryDirectory(), (it) => removeDirectory(it));
  const noise = new Uint8Array(3 * DISK_BYTES);
  const words = new Uint32Array(noise.buffer);
  const random = new Random(0);
  for (let at = 0; at < words.length; at++) words[at] = random.below(2 ** 32);
  for (let done = 0; done < cases; done += EPISODE_REQUESTS) {
    // Each episode of its own seed: a failure is reproduced without those before it.
    const episodeSeed = seed + done / EPISODE_REQUESTS;
    const before = openDescriptors().length;
    try {
      const wanted = Math.min(EPISODE_REQUESTS, cases - done);
      new Episode(new Random(episodeSeed), noise, join(directory, "socket"), wanted).run();
      if (openDescriptors().length !== before)
        throw new Error(`${openDescriptors().length - before} descriptors are left open`);
    } catch (error) {
      throw new Error(`nbd: CASES=${EPISODE_REQUESTS} SEED=${episodeSeed} fails`, { cause: error });
    }
  }
}
