// Random servers for the NBD client: its handshake and its reader of replies are all that a server's bytes reach. A
// server keeps the protocol in a random way, in pieces of any size, until it breaks it in one place. Before that, every
// request ends once, with the bytes that were sent. No memory but the requests' own is ever written.
import { closeSync } from "node:fs";
import { join } from "node:path";
import { NbdClientHandshake } from "../../src/block/targets/nbd/handshake.ts";
import { ReplyReader } from "../../src/block/targets/nbd/replies.ts";
import { NbdRequests } from "../../src/block/targets/nbd/requests.ts";
import { XentoolError } from "../../src/core/errors.ts";
import { XT_STREAM_LOCAL } from "../../src/native/abi.ts";
import { allocateMemory } from "../../src/native/memory.ts";
import { check, shim } from "../../src/native/shim.ts";
import { listenAt } from "../../src/native/unix-listener.ts";
import {
  encodeGreeting,
  encodeInfo,
  encodeOptionReply,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
} from "../../src/protocol/nbd.ts";
import { Random } from "../support/random.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { chunk, dataAt, holeAt, simple, type SeenRequest } from "../unit/nbd-target-peer.ts";

const SLOTS = 8;
/** Each request's memory, with a guard after it. */
const ROOM = 64 * 1024;
const GUARD = 64;
const STRIDE = ROOM + GUARD;
const EAGAIN = -11;
const HANDSHAKES = 10;
const UNTOUCHED = Buffer.alloc(STRIDE, 0xee);

interface Asked extends SeenRequest {
  readonly slot: number;
}

/** Two ends of a connection in this process. */
class Wire implements Disposable {
  readonly client: number;
  readonly #server: number;
  readonly #dir = temporaryDirectory();

  constructor() {
    const path = join(this.#dir, "s");
    const listener = listenAt(path);
    this.client = check(shim.xt_stream_connect(Buffer.from(`${path}\0`), XT_STREAM_LOCAL), "connect");
    this.#server = check(shim.xt_stream_accept(listener.fd), "accept");
    listener.close();
  }

  /** Sends as much as there is room for; returns how much that was. */
  send(bytes: Uint8Array): number {
    const sent = shim.xt_socket_send(this.#server, bytes, bytes.length, null, 0);
    if (sent < 0 && sent !== EAGAIN) throw new Error(`cannot send: ${sent}`);
    return Math.max(0, sent);
  }

  /** Drops what the client has not read. */
  drain(): void {
    const room = Buffer.alloc(ROOM);
    while (shim.xt_socket_receive(this.client, room, room.length) > 0);
  }

  [Symbol.dispose](): void {
    closeSync(this.client);
    closeSync(this.#server);
    removeDirectory(this.#dir);
  }
}

class Episode {
  readonly #random: Random;
  readonly #memory = allocateMemory(SLOTS * STRIDE);
  readonly #requests = new NbdRequests(SLOTS);
  readonly #structured: boolean;
  readonly #asked: Asked[] = [];
  readonly #ended: number[] = [];
  /** What each slot's memory must be; undefined: nobody knows, because its data was damaged or never came. */
  readonly #expected: (Buffer | undefined)[] = [];
  /** The error that each slot must end with. */
  readonly #errors: number[] = [];

  constructor(random: Random) {
    this.#random = random;
    this.#structured = random.chance(0.7);
  }

  run(wire: Wire): void {
    const reader = new ReplyReader(this.#requests, 3, this.#structured, (slot) => {
      this.#end(slot);
      // What comes after the last reply is looked at, too.
      return true;
    });
    try {
      this.#ask(reader);
      const whole = this.#replies();
      const { bytes, isBroken } = this.#random.chance(0.5)
        ? this.#damage(whole)
        : { bytes: whole, isBroken: false };
      for (let at = 0; at < bytes.length && reader.failure === undefined;) {
        const most = 1 + this.#random.below(this.#random.chance(0.5) ? 64 : ROOM);
        at += wire.send(bytes.subarray(at, at + most));
        reader.read(wire.client);
      }
      this.#judge(reader.failure, isBroken);
    } finally {
      wire.drain();
      reader.close();
      this.#requests.close();
      this.#memory.close();
    }
  }

  #ask(reader: ReplyReader): void {
    const random = this.#random;
    this.#memory.bytes.fill(0xee);
    for (let i = 0; i < SLOTS; i++) {
      const command = random.chance(0.7) ? NBD_CMD_READ : NBD_CMD_WRITE;
      const [offset, length] = [random.below(2 ** 40) * 512, (1 + random.below(ROOM / 512)) * 512];
      const requests = this.#requests;
      const slot = requests.take(i, command, offset, length);
      requests.connection[slot] = 3;
      requests.setMemory(slot, this.#memory.address + slot * STRIDE);
      requests.generation[slot] = random.below(2 ** 32);
      reader.begin(slot);
      requests.sent[slot] = 1;
      const cookie = Buffer.alloc(8);
      cookie.writeUInt32BE(requests.generation[slot]);
      cookie.writeUInt32BE(slot, 4);
      this.#asked[slot] = { slot, flags: 0, command, cookie, offset, length, data: Buffer.alloc(0) };
      this.#expected[slot] = Buffer.alloc(length, 0xee);
      this.#errors[slot] = 0;
    }
  }

  /** What a server that keeps the protocol says, its replies and their chunks mixed. */
  #replies(): Buffer {
    const queues = this.#asked.map((asked) => this.#reply(asked));
    const parts: Buffer[] = [];
    for (;;) {
      const left = queues.filter(({ length }) => length > 0);
      if (left.length === 0) return Buffer.concat(parts);
      parts.push(this.#random.pick(left).shift() ?? Buffer.alloc(0));
    }
  }

  #reply(asked: Asked): Buffer[] {
    const random = this.#random;
    const { slot, command, length } = asked;
    const error = random.chance(0.15) ? random.pick([5, 12, 28]) : 0;
    this.#errors[slot] = -error;
    const isRead = command === NBD_CMD_READ;
    if (isRead && error !== 0 && this.#structured) return [this.#errorChunk(asked, error)];
    if (error !== 0) return [simple(asked, error)];
    if (!isRead) return [this.#structured && random.chance(0.5) ? chunk(asked, 0, true) : simple(asked)];
    const data = Buffer.alloc(length, random.below(256));
    data.writeUInt32BE(random.below(2 ** 32), random.below(length / 4) * 4);
    this.#expected[slot] = data;
    return this.#structured ? this.#chunks(asked, data) : [simple(asked, 0, data)];
  }

  #errorChunk(asked: Asked, error: number): Buffer {
    const text = Buffer.alloc(this.#random.below(40), "x");
    const payload = Buffer.alloc(6);
    payload.writeUInt32BE(error);
    payload.writeUInt16BE(text.length, 4);
    return chunk(asked, 0x8001, true, Buffer.concat([payload, text]));
  }

  /** A read's data in up to 12 pieces in any order, some of them holes. */
  #chunks(asked: Asked, data: Buffer): Buffer[] {
    const random = this.#random;
    const cuts = Array.from({ length: random.below(11) }, () => 1 + random.below(data.length - 1));
    const borders = [...new Set([0, ...cuts, data.length])].sort((a, b) => a - b);
    const pieces = borders.slice(1).map((to, i) => [borders[i] ?? 0, to] as const);
    for (let i = pieces.length - 1; i > 0; i--) {
      const j = random.below(i + 1);
      [pieces[i], pieces[j]] = [pieces[j] ?? [0, 0], pieces[i] ?? [0, 0]];
    }
    const endsAlone = random.chance(0.3);
    const chunks = pieces.map(([from, to], i) => {
      const isLast = !endsAlone && i === pieces.length - 1;
      const at = asked.offset + from;
      if (random.chance(0.3)) {
        data.fill(0, from, to);
        return chunk(asked, 2, isLast, holeAt(at, to - from));
      }
      return chunk(asked, 1, isLast, dataAt(at, Buffer.from(data.subarray(from, to))));
    });
    return endsAlone ? [...chunks, chunk(asked, 0, true)] : chunks;
  }

  /** Changes, cuts out, doubles or inserts some bytes. */
  #damage(whole: Buffer): { readonly bytes: Buffer; readonly isBroken: boolean } {
    const random = this.#random;
    const at = random.below(whole.length);
    const some = 1 + random.below(40);
    const [before, after] = [whole.subarray(0, at), whole.subarray(at)];
    switch (random.below(4)) {
      case 0: {
        const bytes = Buffer.from(whole);
        bytes[at] = (bytes[at] ?? 0) ^ (1 + random.below(255));
        return { bytes, isBroken: true };
      }
      case 1:
        return { bytes: Buffer.concat([before, after.subarray(some)]), isBroken: true };
      case 2:
        return { bytes: Buffer.concat([before, after.subarray(0, some), after]), isBroken: true };
      default:
        return {
          bytes: Buffer.concat([before, Buffer.alloc(some, random.below(256)), after]),
          isBroken: true,
        };
    }
  }

  #end(slot: number): void {
    if (this.#requests.connection[slot] !== 3) throw new Error(`request ${slot} ends twice`);
    this.#requests.connection[slot] = -1;
    this.#ended.push(slot);
  }

  #judge(failure: string | undefined, isBroken: boolean): void {
    if (failure !== undefined && !isBroken) throw new Error(`a good server is refused: ${failure}`);
    for (const { slot, length, command } of this.#asked) {
      const memory = this.#memory.bytes.subarray(slot * STRIDE, (slot + 1) * STRIDE);
      const most = command === NBD_CMD_READ ? length : 0;
      if (!UNTOUCHED.subarray(most).equals(memory.subarray(most)))
        throw new Error(`memory that is not request ${slot}'s was written`);
      if (isBroken) continue;
      const error = this.#requests.error[slot];
      if (error !== this.#errors[slot])
        throw new Error(`request ${slot} ends with ${error}, not ${this.#errors[slot]}`);
      const isRight = error !== 0 || this.#expected[slot]?.equals(memory.subarray(0, length)) === true;
      if (!isRight) throw new Error(`request ${slot} has other bytes than were sent`);
    }
    if (!isBroken && this.#ended.length !== SLOTS)
      throw new Error(`${SLOTS - this.#ended.length} requests never end`);
  }
}

/** A server's whole side of a handshake, changed in one place or not; the client must see the export, or throw. */
function handshake(random: Random): void {
  const size = random.below(2 ** 40) * 512;
  const exported = {
    name: "a",
    description: "d",
    sizeBytes: size,
    flags: 1 | random.below(2 ** 12),
    minBlockBytes: 512,
    preferredBlockBytes: 4096,
    maxBlockBytes: 65536,
  };
  const parts: Uint8Array[] = [encodeGreeting(), encodeOptionReply(8, random.chance(0.5) ? 1 : 0x8000_0001)];
  for (const info of [0, 3, ...(random.chance(0.5) ? [1, 2] : [])])
    parts.push(encodeOptionReply(7, 3, encodeInfo(info, exported)));
  parts.push(encodeOptionReply(7, 1));
  const whole = Buffer.concat(parts);
  const isGood = random.chance(0.3);
  if (!isGood) whole[random.below(whole.length)] = random.below(256);
  const client = new NbdClientHandshake("a");
  let pending = Buffer.alloc(0);
  try {
    for (let at = 0; at < whole.length;) {
      const more = 1 + random.below(60);
      pending = Buffer.concat([pending, whole.subarray(at, at + more)]);
      at += more;
      for (;;) {
        const { consumed, seen } = client.step(pending);
        if (consumed > pending.length) throw new Error("the handshake consumes what has not come");
        pending = pending.subarray(consumed);
        if (seen !== undefined && isGood && (seen.sizeBytes !== size || seen.flags !== exported.flags))
          throw new Error("the handshake sees another export");
        if (seen !== undefined) return;
        if (consumed === 0) break;
      }
    }
  } catch (error) {
    if (isGood || !(error instanceof XentoolError)) throw error;
    return;
  }
  if (isGood) throw new Error("the handshake of a good server does not end");
}

export function run(cases: number, seed: number): Promise<void> {
  const random = new Random(seed);
  using wire = new Wire();
  for (let number = 0; number < cases; number += HANDSHAKES + SLOTS) {
    try {
      for (let i = 0; i < HANDSHAKES; i++) handshake(random);
      new Episode(random).run(wire);
    } catch (cause) {
      return Promise.reject(new Error(`case ${number}, SEED=${seed}`, { cause }));
    }
  }
  return Promise.resolve();
}
