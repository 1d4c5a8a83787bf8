// An NBD client that says any bytes, right or wrong, and reads replies as doc/proto.md of NBD has them,
// written out here by hand: nothing of src/protocol is used.
import { connect, type Socket } from "node:net";

const FLAGS_AND_GO = "00000003" + "49484156454f5054" + "00000007" + "00000006" + "00000000" + "0000";
const STRUCTURED = "49484156454f5054" + "00000008" + "00000000";

export const READ = 0;
export const WRITE = 1;
export const DISC = 2;
export const FLUSH = 3;
export const TRIM = 4;
export const WRITE_ZEROES = 6;

export interface Reply {
  readonly cookie: bigint;
  readonly error: number;
  readonly data: Buffer;
}

export class RawClient {
  /** Set once the server has closed the connection. */
  ended = false;
  readonly #socket: Socket;
  /** Bytes that a good reply to each request brings, by cookie: replies come in any order. */
  readonly #lengths = new Map<bigint, number>();
  readonly #reading = new Map<bigint, { at: number; data: Buffer; error: number }>();
  #received: Buffer[] = [];
  #size = 0;
  #notice = (): void => {};
  #structured = false;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (chunk: Buffer) => {
      this.#received.push(chunk);
      this.#size += chunk.length;
      this.#notice();
    });
    const end = (): void => {
      this.ended = true;
      this.#notice();
    };
    socket.on("close", end);
    socket.on("error", end);
  }

  /** A connection that has said nothing yet. Tries again while too many others wait to be accepted. */
  static async connect(path: string): Promise<RawClient> {
    for (;;) {
      const socket = connect(path);
      const connected = new Promise<boolean>((resolve) => {
        socket.once("connect", () => resolve(true));
        socket.once("error", () => resolve(false));
      });
      if (await connected) return new RawClient(socket);
      await Bun.sleep(1);
    }
  }

  /** A connection in the transmission phase. */
  static async open(path: string, structured: boolean): Promise<RawClient> {
    const client = await RawClient.connect(path);
    client.#structured = structured;
    await client.take(18);
    const [flags, go] = [FLAGS_AND_GO.slice(0, 8), FLAGS_AND_GO.slice(8)];
    client.send(Buffer.from(flags + (structured ? STRUCTURED : "") + go, "hex"));
    if (structured) await client.take(20);
    await client.take(20 + 12 + 20 + 14 + 20);
    return client;
  }

  send(bytes: Uint8Array): void {
    this.#socket.write(bytes);
  }

  request(
    type: number,
    cookie: bigint,
    offset: bigint | number,
    length: number,
    flags = 0,
    data?: Uint8Array,
  ): void {
    const header = Buffer.alloc(28);
    header.writeUInt32BE(0x25609513, 0);
    header.writeUInt16BE(flags, 4);
    header.writeUInt16BE(type, 6);
    header.writeBigUInt64BE(cookie, 8);
    header.writeBigUInt64BE(BigInt(offset), 16);
    header.writeUInt32BE(length, 24);
    this.#lengths.set(cookie, type === READ ? length : 0);
    this.send(data === undefined ? header : Buffer.concat([header, data]));
  }

  /** The next whole reply, whichever request's it is. */
  async reply(): Promise<Reply> {
    for (;;) {
      const magic = (await this.take(4)).readUInt32BE();
      if (magic === 0x67446698) {
        const header = await this.take(12);
        const error = header.readUInt32BE(0);
        const cookie = header.readBigUInt64BE(4);
        const data = error === 0 ? await this.take(this.#lengths.get(cookie) ?? 0) : Buffer.alloc(0);
        return { cookie, error, data };
      }
      if (magic !== 0x668e33ef) throw new Error(`a reply begins with ${magic.toString(16)}`);
      const whole = await this.#chunk();
      if (whole !== undefined) return whole;
    }
  }

  /** Exactly `count` bytes. */
  async take(count: number): Promise<Buffer> {
    while (this.#size < count) {
      if (this.ended) throw new Error("the server closed the connection");
      await new Promise<void>((resolve) => (this.#notice = resolve));
    }
    const all = Buffer.concat(this.#received);
    this.#received = [all.subarray(count)];
    this.#size -= count;
    return all.subarray(0, count);
  }

  async untilEnded(): Promise<void> {
    while (!this.ended) await new Promise<void>((resolve) => (this.#notice = resolve));
  }

  /** Reads nothing until `resume`: the server's replies pile up. */
  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  close(): void {
    this.#socket.destroy();
  }

  /** One chunk of a structured reply; the whole when it was the last. */
  async #chunk(): Promise<Reply | undefined> {
    if (!this.#structured) throw new Error("a structured reply that nobody asked for");
    const header = await this.take(16);
    const done = (header.readUInt16BE(0) & 1) !== 0;
    const type = header.readUInt16BE(2);
    const cookie = header.readBigUInt64BE(4);
    const payload = await this.take(header.readUInt32BE(12));
    const asked = type === 0x8001 ? 0 : (this.#lengths.get(cookie) ?? 0);
    const reading = this.#reading.get(cookie) ?? { at: 0, data: Buffer.alloc(asked), error: 0 };
    this.#reading.set(cookie, reading);
    if (type === 1) {
      const data = payload.subarray(8);
      // Where in the reply: offsets are the disk's, and the first 2^20 bytes of cookies' upper half tell ours.
      data.copy(reading.data, Number(payload.readBigUInt64BE(0) - (cookie >> 32n) * 512n));
      reading.at += data.length;
    } else if (type === 0x8001) reading.error = payload.readUInt32BE(0);
    else if (type !== 0) throw new Error(`a chunk of type ${type}`);
    if (!done) return undefined;
    this.#reading.delete(cookie);
    if (reading.error === 0 && reading.at !== reading.data.length)
      throw new Error(`${reading.at} bytes of ${reading.data.length} came`);
    return { cookie, error: reading.error, data: reading.data };
  }
}

/** A cookie that tells the client where a read of its begins: the sector is its upper half. */
export function cookieFor(sector: number, number: number): bigint {
  return (BigInt(sector) << 32n) | BigInt(number);
}
