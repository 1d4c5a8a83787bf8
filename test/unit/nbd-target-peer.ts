// An NBD server that does what a test tells it, and an NBD target that talks to it, both in this thread.
import { join } from "node:path";
import { beginConnection } from "../../src/block/targets/nbd/dial.ts";
import { NbdTarget, type NbdTargetOptions } from "../../src/block/targets/nbd/target.ts";
import { WriteLog } from "../../src/block/targets/nbd/write-log.ts";
import type { SeenExport } from "../../src/block/targets/nbd/handshake.ts";
import { allocateMemory } from "../../src/native/memory.ts";
import { Reactor } from "../../src/native/reactor.ts";
import {
  encodeExportNameReply,
  encodeGreeting,
  encodeInfo,
  encodeOptionReply,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_TRIM,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_EXPORT,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ACK,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
} from "../../src/protocol/nbd.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

export const SIZE = 1024 * 1024;
export const LOG_BYTES = 256 * 1024;

export interface SeenRequest {
  readonly flags: number;
  readonly command: number;
  readonly cookie: Buffer;
  readonly offset: number;
  readonly length: number;
  /** A write's. */
  readonly data: Buffer;
}

export interface PeerOptions {
  readonly structured?: boolean;
  readonly go?: boolean;
  readonly flags?: number;
  readonly sizeBytes?: number;
  readonly minBlockBytes?: number;
  readonly maxBlockBytes?: number;
  /** What is sent for each request; undefined: nothing. `connection` is the one it came on. */
  readonly reply: (request: SeenRequest, connection: Connection) => Uint8Array | undefined;
}

export type End = readonly [tag: number, result: number];

export type Connection = Pick<Bun.Socket<Peer>, "write" | "terminate" | "readyState">;

type Peer = { pending: Buffer; phase: "flags" | "options" | "requests" };

const DEFAULT_FLAGS = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_TRIM;

export class TargetAndPeer {
  readonly dir = temporaryDirectory();
  readonly path = join(this.dir, "nbd.sock");
  readonly memory = allocateMemory(256 * 1024);
  readonly ends: End[] = [];
  readonly requests: SeenRequest[] = [];
  readonly reactor = Reactor.open(64, "sync");
  readonly target: NbdTarget;
  /** Connections that were made. */
  opened = 0;
  /** For each connection that the target asked for: whether it was to be made anew. */
  readonly anew: boolean[] = [];
  /** How often something arrived. */
  arrivals = 0;
  readonly #listener: { stop(closes: boolean): void };
  readonly #sockets = new Set<Bun.Socket<Peer>>();
  #options: PeerOptions;

  /** `more` is for those that hold: without it, a lost server fails everything at once. */
  constructor(options: PeerOptions, silenceMs = 60_000, more: Partial<NbdTargetOptions> = {}) {
    this.#options = options;
    const serve = (socket: Bun.Socket<Peer>, bytes: Buffer) => this.#take(socket, bytes);
    this.#listener = Bun.listen<Peer>({
      unix: this.path,
      socket: {
        open: (socket) => {
          this.opened++;
          this.#sockets.add(socket);
          socket.data = { pending: Buffer.alloc(0), phase: "flags" };
          socket.write(encodeGreeting());
        },
        data: serve,
        close: (socket) => void this.#sockets.delete(socket),
        error() {},
      },
    });
    const seen: SeenExport = {
      sizeBytes: SIZE,
      flags: options.flags ?? DEFAULT_FLAGS,
      structured: options.structured ?? true,
      minBlockBytes: 512,
      preferredBlockBytes: 4096,
      maxBlockBytes: options.go === false ? 32 * 1024 * 1024 : (options.maxBlockBytes ?? 65536),
    };
    const address = { address: this.path, port: undefined, exportName: "a" };
    const how: NbdTargetOptions = {
      exportName: "a",
      seen,
      readOnly: false,
      connections: 4,
      depth: 16,
      silenceMs,
      isOurs: false,
      endingMs: 60_000,
      holdMs: 0,
      dial: (onDialled, anew) => {
        this.anew.push(anew);
        onDialled(beginConnection(address));
      },
      log: WriteLog.open(join(this.dir, "log"), "a", LOG_BYTES),
      ...more,
    };
    this.target = new NbdTarget(how, this.reactor, (tag, result) => this.ends.push([tag, result]));
  }

  /** Connections that are there. */
  get live(): number {
    return this.#sockets.size;
  }

  /** Lets both sides run until `count` operations have ended; returns their ends by tag. */
  async ended(count: number): Promise<readonly End[]> {
    await this.until(() => this.ends.length >= count);
    return this.ends.splice(0).sort((a, b) => a[0] - b[0]);
  }

  /** Lets both sides run once. */
  async turn(): Promise<void> {
    this.reactor.wait(1, 500);
    this.reactor.dispatch();
    await new Promise((go) => setImmediate(go));
  }

  /** Lets both sides run until `holds`. */
  async until(holds: () => boolean): Promise<void> {
    for (const since = performance.now(); !holds();) {
      if (performance.now() - since > 20_000) throw new Error("not after 20 s");
      await this.turn();
    }
  }

  /** Lets both sides run for longer than the target waits before it connects again. */
  async settle(): Promise<void> {
    for (let round = 0; round < 100; round++) {
      await this.turn();
    }
  }

  /** From now on the server does as `options` say. */
  become(options: Partial<PeerOptions>): void {
    this.#options = { ...this.#options, ...options };
  }

  /** The server dies, and is another one from now on. */
  die(options: Partial<PeerOptions> = {}): void {
    this.become(options);
    for (const socket of this.#sockets) socket.terminate();
  }

  /** Sends `bytes` on every connection that has asked for something. */
  send(bytes: Uint8Array): void {
    for (const socket of this.#sockets) if (socket.data.phase === "requests") socket.write(bytes);
  }

  /** The server dies, and nobody is there any more. */
  stopListening(): void {
    this.#listener.stop(true);
  }

  close(): void {
    this.target.close(true);
    this.reactor.close();
    this.#listener.stop(true);
    this.memory.close();
    removeDirectory(this.dir);
  }

  #take(socket: Bun.Socket<Peer>, bytes: Buffer): void {
    const peer = socket.data;
    this.arrivals++;
    peer.pending = Buffer.concat([peer.pending, bytes]);
    for (;;) {
      const used = peer.phase === "requests" ? this.#request(socket) : this.#negotiate(socket);
      if (used === 0) return;
      peer.pending = peer.pending.subarray(used);
    }
  }

  #negotiate(socket: Bun.Socket<Peer>): number {
    const peer = socket.data;
    const { pending } = peer;
    if (peer.phase === "flags") {
      if (pending.length < 4) return 0;
      peer.phase = "options";
      return 4;
    }
    if (pending.length < 16 || pending.length < 16 + pending.readUInt32BE(12)) return 0;
    const {
      structured = true,
      go = true,
      flags = DEFAULT_FLAGS,
      sizeBytes = SIZE,
      minBlockBytes = 512,
      maxBlockBytes = 65536,
    } = this.#options;
    const option = pending.readUInt32BE(8);
    const exported = {
      name: "a",
      description: "",
      sizeBytes,
      flags,
      minBlockBytes,
      preferredBlockBytes: 4096,
      maxBlockBytes,
    };
    if (option === NBD_OPT_STRUCTURED_REPLY)
      socket.write(encodeOptionReply(option, structured ? NBD_REP_ACK : NBD_REP_ERR_UNSUP));
    else if (option === 7 && go) {
      for (const info of [NBD_INFO_EXPORT, NBD_INFO_BLOCK_SIZE])
        socket.write(encodeOptionReply(option, NBD_REP_INFO, encodeInfo(info, exported)));
      socket.write(encodeOptionReply(option, NBD_REP_ACK));
      peer.phase = "requests";
    } else if (option === 7) socket.write(encodeOptionReply(option, NBD_REP_ERR_UNSUP));
    else {
      socket.write(encodeExportNameReply(exported, false));
      peer.phase = "requests";
    }
    return 16 + pending.readUInt32BE(12);
  }

  #request(socket: Bun.Socket<Peer>): number {
    const { pending } = socket.data;
    if (pending.length < 28) return 0;
    const command = pending.readUInt16BE(6);
    const length = pending.readUInt32BE(24);
    const whole = 28 + (command === 1 ? length : 0);
    if (pending.length < whole) return 0;
    const offset = Number(pending.readBigUInt64BE(16));
    const request = {
      flags: pending.readUInt16BE(4),
      command,
      cookie: Buffer.from(pending.subarray(8, 16)),
      offset,
      length,
      data: Buffer.from(pending.subarray(28, whole)),
    };
    this.requests.push(request);
    const reply = this.#options.reply(request, socket);
    if (reply !== undefined) socket.write(reply);
    return whole;
  }
}

export function simple({ cookie }: SeenRequest, error = 0, data: Uint8Array = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(16);
  head.writeUInt32BE(0x6744_6698);
  head.writeUInt32BE(error, 4);
  cookie.copy(head, 8);
  return Buffer.concat([head, data]);
}

export function chunk(
  { cookie }: SeenRequest,
  type: number,
  isLast: boolean,
  payload: Uint8Array = Buffer.alloc(0),
): Buffer {
  const head = Buffer.alloc(20);
  head.writeUInt32BE(0x668e_33ef);
  head.writeUInt16BE(isLast ? 1 : 0, 4);
  head.writeUInt16BE(type, 6);
  cookie.copy(head, 8);
  head.writeUInt32BE(payload.length, 16);
  return Buffer.concat([head, payload]);
}

/** The payload of a chunk of data. */
export function dataAt(offset: number, data: Uint8Array): Buffer {
  const head = Buffer.alloc(8);
  head.writeBigUInt64BE(BigInt(offset));
  return Buffer.concat([head, data]);
}

/** The payload of a hole. */
export function holeAt(offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(12);
  bytes.writeBigUInt64BE(BigInt(offset));
  bytes.writeUInt32BE(length, 8);
  return bytes;
}
