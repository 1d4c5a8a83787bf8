// An NBD server that does what a test tells it, and an NBD target that talks to it, both in this thread.
import { join } from "node:path";
import { NbdTarget } from "../../src/block/targets/nbd/target.ts";
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

export interface SeenRequest {
  readonly command: number;
  readonly cookie: Buffer;
  readonly offset: number;
  readonly length: number;
}

export interface PeerOptions {
  readonly structured?: boolean;
  readonly go?: boolean;
  readonly flags?: number;
  /** What is sent for each request; undefined: nothing. */
  readonly reply: (request: SeenRequest) => Uint8Array | undefined;
}

export type End = readonly [tag: number, result: number];

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
  readonly #listener: { stop(closes: boolean): void };
  readonly #options: PeerOptions;

  constructor(options: PeerOptions, silenceMs = 60_000) {
    this.#options = options;
    const serve = (socket: Bun.Socket<Peer>, bytes: Buffer) => this.#take(socket, bytes);
    this.#listener = Bun.listen<Peer>({
      unix: this.path,
      socket: {
        open(socket) {
          socket.data = { pending: Buffer.alloc(0), phase: "flags" };
          socket.write(encodeGreeting());
        },
        data: serve,
        error() {},
      },
    });
    const seen: SeenExport = {
      sizeBytes: SIZE,
      flags: options.flags ?? DEFAULT_FLAGS,
      structured: options.structured ?? true,
      minBlockBytes: 512,
      preferredBlockBytes: 4096,
      maxBlockBytes: options.go === false ? 32 * 1024 * 1024 : 65536,
    };
    const address = { address: this.path, port: undefined, exportName: "a" };
    const how = { address, seen, readOnly: false, connections: 4, depth: 16, silenceMs };
    this.target = new NbdTarget(how, this.reactor, (tag, result) => this.ends.push([tag, result]));
  }

  /** Lets both sides run until `count` operations have ended; returns their ends by tag. */
  async ended(count: number): Promise<readonly End[]> {
    const deadline = performance.now() + 20_000;
    while (this.ends.length < count && performance.now() < deadline) {
      this.reactor.wait(1, 500);
      this.reactor.dispatch();
      await new Promise((go) => setImmediate(go));
    }
    return this.ends.splice(0).sort((a, b) => a[0] - b[0]);
  }

  close(): void {
    this.target.close();
    this.reactor.close();
    this.#listener.stop(true);
    this.memory.close();
    removeDirectory(this.dir);
  }

  #take(socket: Bun.Socket<Peer>, bytes: Buffer): void {
    const peer = socket.data;
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
    const { structured = true, go = true, flags = DEFAULT_FLAGS } = this.#options;
    const option = pending.readUInt32BE(8);
    const exported = {
      name: "a",
      description: "",
      sizeBytes: SIZE,
      flags,
      minBlockBytes: 512,
      preferredBlockBytes: 4096,
      maxBlockBytes: 65536,
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
    const request = { command, cookie: Buffer.from(pending.subarray(8, 16)), offset, length };
    this.requests.push(request);
    const reply = this.#options.reply(request);
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
