// A disk that takes flushes seriously, as an NBD server in this process: what was written is safe only after a flush.
// It records how much was safe when the last block, the mark, was written.
import { rmSync } from "node:fs";
import { NbdHandshake } from "../blkfront/nbd-handshake.ts";
import {
  DATA_CHUNK_BYTES,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_SEND_FLUSH,
  NBD_REQUEST,
  NBD_REQUEST_MAGIC,
  writeDataChunk,
  writeSimpleReply,
  type NbdExport,
} from "../protocol/nbd.ts";

const MAX_PAYLOAD = 1 << 20;
const NOTHING = Buffer.alloc(0);

interface Client {
  readonly handshake: NbdHandshake;
  transmits: boolean;
  input: Buffer;
  /** What the socket did not take yet. */
  output: Buffer;
}

export class ForgetfulStore implements Disposable {
  readonly #path: string;
  readonly #cache: Buffer;
  /** What a crash would leave. */
  readonly #safe: Buffer;
  readonly #markAt: number;
  readonly #server: Bun.UnixSocketListener<Client>;
  #safeAtMark: Buffer | undefined;

  /** Serves `sizeBytes` of zeroes at `path`, to one client at a time; the mark is the last `markBytes`. */
  constructor(path: string, sizeBytes: number, markBytes: number) {
    this.#path = path;
    this.#cache = Buffer.alloc(sizeBytes);
    this.#safe = Buffer.alloc(sizeBytes);
    this.#markAt = sizeBytes - markBytes;
    this.#server = Bun.listen<Client>({
      unix: path,
      socket: {
        open: (socket) => {
          const handshake = new NbdHandshake(() => this.#exported());
          socket.data = { handshake, transmits: false, input: NOTHING, output: NOTHING };
          this.#send(socket, handshake.greeting);
        },
        data: (socket, bytes) => this.#receive(socket, bytes),
        drain: (socket) => this.#send(socket, NOTHING),
      },
    });
  }

  /** What was safe when the mark was written, the mark itself not counted; undefined: it never was. */
  get safeAtMark(): Uint8Array | undefined {
    return this.#safeAtMark;
  }

  [Symbol.dispose](): void {
    this.#server.stop(true);
    rmSync(this.#path, { force: true });
  }

  #exported(): NbdExport {
    return {
      name: "",
      description: "",
      sizeBytes: this.#cache.length,
      flags: NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH,
      minBlockBytes: 512,
      preferredBlockBytes: 4096,
      maxBlockBytes: MAX_PAYLOAD,
    };
  }

  #receive(socket: Bun.Socket<Client>, bytes: Uint8Array): void {
    const client = socket.data;
    client.input = Buffer.concat([client.input, bytes]);
    while (client.transmits ? this.#serve(socket) : this.#negotiate(socket)) {}
  }

  /** Takes one option. False: there is none. */
  #negotiate(socket: Bun.Socket<Client>): boolean {
    const client = socket.data;
    const { consumed, reply, outcome } = client.handshake.step(client.input);
    client.input = client.input.subarray(consumed);
    this.#send(socket, reply);
    if (outcome === "end") socket.end();
    client.transmits = outcome === "transmission";
    return consumed > 0 && outcome !== "end";
  }

  /** Carries out one request. False: there is none. A client of ours sends none that is wrong. */
  #serve(socket: Bun.Socket<Client>): boolean {
    const { input } = socket.data;
    if (input.length < NBD_REQUEST.bytes) return false;
    const type = input.readUInt16BE(NBD_REQUEST.type);
    const offset = Number(input.readBigUInt64BE(NBD_REQUEST.offset));
    const length = input.readUInt32BE(NBD_REQUEST.length);
    const isKnown = type === NBD_CMD_FLUSH || type === NBD_CMD_READ || type === NBD_CMD_WRITE;
    const isInside = length <= MAX_PAYLOAD && offset + length <= this.#cache.length;
    if (!isKnown || !isInside || input.readUInt32BE(NBD_REQUEST.magic) !== NBD_REQUEST_MAGIC) {
      socket.end();
      return false;
    }
    const end = NBD_REQUEST.bytes + (type === NBD_CMD_WRITE ? length : 0);
    if (input.length < end) return false;
    if (type === NBD_CMD_WRITE) this.#write(offset, input.subarray(NBD_REQUEST.bytes, end));
    if (type === NBD_CMD_FLUSH) this.#cache.copy(this.#safe);
    const data = type === NBD_CMD_READ ? this.#cache.subarray(offset, offset + length) : undefined;
    this.#reply(socket, offset, data);
    socket.data.input = input.subarray(end);
    return true;
  }

  #reply(socket: Bun.Socket<Client>, offset: number, data: Uint8Array | undefined): void {
    const { input, handshake } = socket.data;
    const high = input.readUInt32BE(NBD_REQUEST.cookie);
    const low = input.readUInt32BE(NBD_REQUEST.cookie + 4);
    const head = new Uint8Array(DATA_CHUNK_BYTES);
    const view = new DataView(head.buffer);
    const bytes =
      data !== undefined && handshake.structured
        ? writeDataChunk(view, 0, true, high, low, offset, data.length)
        : writeSimpleReply(view, 0, 0, high, low);
    this.#send(socket, Buffer.concat([head.subarray(0, bytes), data ?? NOTHING]));
  }

  #write(offset: number, payload: Uint8Array): void {
    if (offset + payload.length > this.#markAt) this.#safeAtMark ??= Buffer.from(this.#safe);
    this.#cache.set(payload, offset);
  }

  #send(socket: Bun.Socket<Client>, bytes: Uint8Array): void {
    const client = socket.data;
    client.output = Buffer.concat([client.output, bytes]);
    const written = socket.write(client.output);
    client.output = client.output.subarray(Math.max(0, written));
  }
}
