// The disk behind the NBD server: a backend that carries out the ring's requests late, in any order and not always
// with success, and beside it what clients may believe. No two commands under way share a sector, so each request on
// the ring belongs to one command, and every byte of a reply is known.
import type { Random } from "../support/random.ts";
import type { FakeBackend, SeenRequest } from "../unit/blkfront-fake-backend.ts";
import {
  changes,
  EIO,
  ENOTSUP,
  FLUSH,
  FUA,
  READ,
  TRIM,
  WRITE,
  type Request,
  type ServedDisk,
} from "./nbd-protocol-model.ts";

const SECTOR = 512;
const RING_READ = 0;
const RING_WRITE = 1;
const RING_BARRIER = 2;
const RING_FLUSH = 3;
const RING_DISCARD = 5;
const STATUSES = new Map([
  [EIO, -1],
  [ENOTSUP, -2],
]);

/** A request that a client has made. */
export interface Command {
  readonly request: Request;
  /** The errors that it deserves; if there are none, it must be carried out. */
  readonly errors: ReadonlySet<number>;
  readonly payload: Uint8Array;
  readonly madeAt: number;
  /** By sector: 1 when the server has asked the backend for it. */
  readonly touched: Uint8Array;
  /** Requests on the ring without an answer. */
  onRing: number;
  /** When its last request on the ring was answered. */
  doneAt: number;
  /** What the backend failed it with, as NBD errors. */
  readonly failures: Set<number>;
}

interface Waiting {
  readonly seen: SeenRequest;
  /** None: a flush. */
  readonly command: Command | undefined;
  readonly takenAt: number;
}

export class DiskModel {
  readonly disk: ServedDisk;
  /** What clients must find. */
  readonly believed: Uint8Array;
  /** Share of the backend's answers that are failures. */
  failing = 0;
  now = 0;
  readonly #stored: Uint8Array;
  readonly #backend: FakeBackend;
  readonly #random: Random;
  readonly #noise: Uint8Array;
  readonly #waiting: Waiting[] = [];
  /** When the backend took the flushes that succeeded. */
  #flushes: number[] = [];
  readonly #active = new Set<Command>();
  /** Commands whose clients have gone: nobody will tell how they ended. */
  readonly #orphans = new Set<Command>();
  #flushFailures = 0;
  #flushErrors = 0;
  #flushOrphans = 0;

  constructor(disk: ServedDisk, backend: FakeBackend, random: Random, noise: Uint8Array) {
    this.disk = disk;
    this.#backend = backend;
    this.#random = random;
    this.#noise = noise;
    this.#stored = noise.slice(0, disk.sectors512 * SECTOR);
    this.believed = this.#stored.slice();
  }

  /** Whether `request` would use sectors that another command uses. */
  isBusy({ offset, length, type }: Request): boolean {
    if (type === FLUSH) return false;
    for (const { request } of this.#active)
      if (request.offset < offset + BigInt(length) && offset < request.offset + BigInt(request.length))
        return true;
    return false;
  }

  begin(request: Request, errors: ReadonlySet<number>): Command {
    const { type, length } = request;
    const isWrite = type === WRITE;
    const from = isWrite ? this.#random.below(this.#noise.length - length) : 0;
    const isCarriedOut = errors.size === 0 && type !== FLUSH;
    const command: Command = {
      request,
      errors,
      payload: this.#noise.subarray(from, isWrite ? from + length : from),
      madeAt: this.now,
      touched: new Uint8Array(isCarriedOut ? length / SECTOR : 0),
      onRing: 0,
      doneAt: this.now,
      failures: new Set(),
    };
    if (isCarriedOut) this.#active.add(command);
    return command;
  }

  /** The client was told that `command` ended with `error`, 0 for success. */
  end(command: Command, error: number): void {
    const { request, errors, failures } = command;
    this.#active.delete(command);
    if (errors.size > 0) {
      if (!errors.has(error)) throw new Error(`error ${error}, where ${listed(errors)} was deserved`);
      return;
    }
    if (command.onRing > 0) throw new Error("it was answered while it was on the ring");
    const flushes = isFlushing(request);
    if (error !== 0 && failures.size === 0 && flushes && STATUSES.has(error)) this.#flushErrors++;
    else if (error === 0 ? failures.size > 0 : !failures.has(error))
      throw new Error(`error ${error}, and the backend failed it with ${listed(failures)}`);
    if (error !== 0) return this.#believeEither(command);
    if (command.touched.includes(0)) throw new Error("it was answered before all of it was done");
    const since = request.type === FLUSH ? command.madeAt : command.doneAt;
    const isFlushed = this.#flushes.some((takenAt) => takenAt > since);
    if (flushes && !isFlushed) throw new Error("it was answered before it was flushed");
    if (changes(request.type)) this.believed.set(newContent(command), Number(request.offset));
  }

  /** Nobody waits for `command` any more; the server may still carry it out. */
  orphan(command: Command): void {
    if (command.errors.size > 0) return;
    if (isFlushing(command.request)) this.#flushOrphans++;
    if (this.#active.has(command)) this.#orphans.add(command);
  }

  /** The server has let go of all clients that are gone: what they asked for is done, or never will be. */
  settleOrphans(): void {
    for (const command of this.#orphans) {
      if (command.onRing > 0) throw new Error("a connection was buried while its command was on the ring");
      this.#active.delete(command);
      this.#believeEither(command);
    }
    this.#orphans.clear();
  }

  /** The backend takes what is on the ring, and answers some of it: all, if `isEager`. True when there was any. */
  turn(isEager: boolean): boolean {
    this.now++;
    for (const seen of this.#backend.take()) this.#take(seen);
    const isBusy = this.#waiting.length > 0;
    const random = this.#random;
    let count = isEager ? this.#waiting.length : random.below(Math.min(8, this.#waiting.length + 1));
    for (; count > 0; count--) {
      const at = random.below(this.#waiting.length);
      const [entry] = this.#waiting.splice(at, 1);
      const error = random.chance(this.failing) ? random.pick([...STATUSES.keys()]) : 0;
      this.#answer(entry, error);
    }
    return isBusy;
  }

  /** Nothing is under way: what is stored must be what clients believe. */
  compare(): void {
    this.settleOrphans();
    if (this.#active.size > 0) throw new Error("a command is still active");
    if (Buffer.compare(this.believed, this.#stored) !== 0)
      throw new Error("the disk differs from what clients believe");
    const untold = this.#flushFailures - this.#flushErrors;
    if (untold < 0 || untold > this.#flushOrphans)
      throw new Error(`${this.#flushFailures} flushes failed, and clients heard of ${this.#flushErrors}`);
    this.#flushFailures = this.#flushErrors = this.#flushOrphans = 0;
    this.#flushes = [];
  }

  #take(seen: SeenRequest): void {
    const { op, echo } = seen;
    if (op === RING_FLUSH || op === RING_BARRIER) {
      if (op === RING_FLUSH ? !this.disk.canFlush : !this.disk.canBarrier)
        throw new Error(`the backend has no operation ${op}`);
      if (seen.segments.length > 0) throw new Error("a flush with data");
      this.#waiting.push({ seen, command: undefined, takenAt: this.now });
      return;
    }
    const first = Number(seen.sector);
    const count = op === RING_DISCARD ? Number(seen.sectors) : sectorsOf(seen);
    const command = [...this.#active].find(({ request }) => {
      const from = Number(request.offset) / SECTOR;
      return from <= first && first + count <= from + request.length / SECTOR;
    });
    if (command === undefined || count === 0)
      throw new Error(`operation ${echo} on ${count} sectors at ${first}, which no client asked for`);
    const { type, offset } = command.request;
    const wanted = type === READ ? RING_READ : type === TRIM ? RING_DISCARD : RING_WRITE;
    if (echo !== wanted) throw new Error(`operation ${echo} for a command of type ${type}`);
    const from = first - Number(offset) / SECTOR;
    const part = command.touched.subarray(from, from + count);
    if (part.includes(1)) throw new Error(`sectors ${first} to ${first + count} are asked for twice`);
    part.fill(1);
    command.onRing++;
    this.#waiting.push({ seen, command, takenAt: this.now });
  }

  #answer({ seen, command, takenAt }: Waiting, error: number): void {
    if (command === undefined) {
      if (error === 0) this.#flushes.push(takenAt);
      else this.#flushFailures++;
    } else {
      command.onRing--;
      command.doneAt = this.now;
      if (error === 0) this.#carryOut(seen);
      else command.failures.add(error);
    }
    this.#backend.answer(seen.id, seen.echo, STATUSES.get(error) ?? 0);
  }

  #carryOut(seen: SeenRequest): void {
    let at = Number(seen.sector) * SECTOR;
    if (seen.op === RING_DISCARD) this.#stored.fill(0, at, at + Number(seen.sectors) * SECTOR);
    for (const { gref, first, last } of seen.segments) {
      const { bytes, access } = this.#backend.page(gref);
      const end = at + (last - first + 1) * SECTOR;
      const page = bytes.subarray(first * SECTOR, (last + 1) * SECTOR);
      if (seen.echo === RING_WRITE) this.#stored.set(page, at);
      else if (access !== "rw") throw new Error("a read into a page that is granted for reading only");
      else page.set(this.#stored.subarray(at, end));
      at = end;
    }
  }

  /** Each sector of a command that ended in part, or nobody knows how, is as it was or as it should be. */
  #believeEither(command: Command): void {
    const { request } = command;
    if (!changes(request.type)) return;
    const content = newContent(command);
    for (let done = 0; done < request.length; done += SECTOR) {
      const at = Number(request.offset) + done;
      const now = this.#stored.subarray(at, at + SECTOR);
      const isOld = Buffer.compare(now, this.believed.subarray(at, at + SECTOR)) === 0;
      if (!isOld && Buffer.compare(now, content.subarray(done, done + SECTOR)) !== 0)
        throw new Error(`sector ${at / SECTOR} is neither old nor new after a failure`);
      this.believed.set(now, at);
    }
  }
}

/** Whether success means that something is durable. */
function isFlushing({ type, flags }: Request): boolean {
  return type === FLUSH || (changes(type) && (flags & FUA) !== 0);
}

function newContent({ request, payload }: Command): Uint8Array {
  return request.type === WRITE ? payload : new Uint8Array(request.length);
}

export function listed(errors: ReadonlySet<number>): string {
  return [...errors].join(" or ") || "none";
}

function sectorsOf(seen: SeenRequest): number {
  return seen.segments.reduce((sum, { first, last }) => sum + last - first + 1, 0);
}
