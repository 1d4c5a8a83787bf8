// A client of the NBD server that speaks in pieces of any size, reads when it likes, and checks each byte that it is
// sent: the handshake's are the model's, every request gets one reply with its cookie, and data is the disk's.
import { closeSync } from "node:fs";
import { XT_STREAM_LOCAL } from "../../src/native/abi.ts";
import { check, shim } from "../../src/native/shim.ts";
import { listed, type Command, type DiskModel } from "./nbd-disk-model.ts";
import { DF, encodeRequest, errorsOf, HandshakeModel, READ, type Request } from "./nbd-protocol-model.ts";

const SIMPLE = 0x67446698;
const STRUCTURED = 0x668e33ef;
const MAGIC_BYTES = 4;
const OFFSET_DATA = 1;
const ERROR_CHUNK = 0x8001;
const EAGAIN = -11;
const EPIPE = -32;
const ECONNRESET = -104;
const RECEIVE_BYTES = 256 << 10;
const NO_BYTES = Buffer.alloc(0);

/** Data of `command` that is arriving. */
interface Arriving {
  readonly command: Command;
  at: number;
  left: number;
  readonly isLast: boolean;
}

export class FuzzClient {
  readonly handshake: HandshakeModel;
  /** It does not read, and stops in the middle of what it says, until all others have been served. */
  isSilent = false;
  readonly #disk: DiskModel;
  readonly #fd: number;
  readonly #pending = new Map<bigint, Command>();
  /** By sector of a read: 1 when its data has come. */
  readonly #got = new Map<Command, Uint8Array>();
  readonly #room = Buffer.alloc(RECEIVE_BYTES);
  #outgoing: Buffer[] = [];
  #greeted = 0;
  #header: Buffer = NO_BYTES;
  /** The length of the header that is arriving, as far as it is known. */
  #headerBytes = MAGIC_BYTES;
  #arriving: Arriving | undefined;
  /** After this the server must close the connection: `served` when all is answered, `at once` as it likes. */
  #ending: "none" | "served" | "at once" = "none";
  #endsOutput = false;
  #isClosed = false;

  constructor(path: string, disk: DiskModel) {
    this.#fd = check(shim.xt_stream_connect(Buffer.from(`${path}\0`), XT_STREAM_LOCAL), "connect");
    this.#disk = disk;
    this.handshake = new HandshakeModel(disk.disk);
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  get isEnding(): boolean {
    return this.#ending !== "none" || this.handshake.phase === "ended";
  }

  /** Whether the server has a reason to close the connection. */
  get mayBeClosed(): boolean {
    return this.isEnding || this.#isCut;
  }

  get unsent(): number {
    return this.#outgoing.reduce((sum, { length }) => sum + length, 0);
  }

  /** What is waited for, when nothing happens any more. */
  describe(): string {
    const waiting = [...this.#pending.values()].map(
      ({ request, onRing }) =>
        `${request.type} at ${request.offset}+${request.length}, ${onRing} on the ring`,
    );
    const silent = this.isSilent ? "silent, " : "";
    return `${silent}${this.handshake.phase}, ending ${this.#ending}, ${this.unsent} unsent, waiting for [${waiting.join("; ")}]`;
  }

  negotiate(bytes: Buffer): void {
    this.#outgoing.push(bytes);
    this.handshake.feed(bytes);
    if (this.handshake.phase !== "transmission" || this.handshake.rest.length === 0) return;
    // An option that was cut short by a changed byte: its end cannot be a request.
    this.#outgoing.push(Buffer.alloc(28));
    this.#ending = "at once";
  }

  /** Makes a request. If it is fatal, the server ends the connection at its header. */
  request(request: Request, isFatal: boolean): void {
    this.#outgoing.push(encodeRequest(request));
    if (isFatal) {
      this.#ending = "at once";
      return;
    }
    const errors = errorsOf(request, this.#disk.disk, this.handshake.structured);
    const command = this.#disk.begin(request, errors);
    if (command.payload.length > 0) this.#outgoing.push(Buffer.from(command.payload));
    this.#pending.set(request.cookie, command);
  }

  /** Says that nothing more comes, in the middle of whatever is being said if `isSudden`. */
  endOutput(isSudden: boolean): void {
    this.#ending = isSudden || this.#ending === "at once" ? "at once" : "served";
    if (isSudden) this.#outgoing = [];
    this.#endsOutput = true;
  }

  /** Asks for the end. */
  disconnect(request: Buffer): void {
    this.#outgoing.push(request);
    this.#ending = "served";
  }

  /** Leaves without a word. */
  leave(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    closeSync(this.#fd);
    for (const command of this.#pending.values()) this.#disk.orphan(command);
    this.#pending.clear();
  }

  /** Sends up to `most` bytes. Returns how many went. */
  send(most: number): number {
    const first = this.#outgoing[0];
    if (this.#isClosed || most === 0) return 0;
    if (first === undefined) {
      if (this.#endsOutput) shim.xt_stream_end(this.#fd);
      this.#endsOutput = false;
      return 0;
    }
    const sent = shim.xt_socket_send(this.#fd, first, Math.min(most, first.length), null, 0);
    if (sent === EPIPE || sent === ECONNRESET)
      this.#outgoing = []; // receiving tells whether that was right
    else if (sent > 0 && sent < first.length) this.#outgoing[0] = first.subarray(sent);
    else if (sent > 0) this.#outgoing.shift();
    else if (sent !== EAGAIN) throw new Error(`a client cannot send: ${sent}`);
    return Math.max(0, sent);
  }

  /** Receives and checks up to `most` bytes. Returns how many came. */
  receive(most: number): number {
    if (this.#isClosed || most === 0) return 0;
    const count = shim.xt_socket_receive(this.#fd, this.#room, Math.min(most, RECEIVE_BYTES));
    if (count === EAGAIN) return 0;
    if (count === 0 || count === ECONNRESET) this.#ended();
    else if (count < 0) throw new Error(`a client cannot receive: ${count}`);
    else this.#take(this.#room.subarray(0, count));
    return Math.max(1, count);
  }

  /** A simple reply that has begun cannot turn into an error, so its connection ends. */
  get #isCut(): boolean {
    if (this.handshake.structured) return false;
    const { pieceBytes } = this.#disk.disk;
    return [...this.#pending.values()].some(
      ({ request, failures }) => request.type === READ && request.length > pieceBytes && failures.size > 0,
    );
  }

  #ended(): void {
    if (!this.mayBeClosed) throw new Error("the server closed the connection without a reason");
    const isComplete =
      this.#pending.size === 0 &&
      this.#header.length === 0 &&
      this.#greeted === this.handshake.expected.length;
    if (this.#ending !== "at once" && !this.#isCut && !isComplete)
      throw new Error(`the connection was closed before the end of the replies: ${this.describe()}`);
    this.leave();
  }

  #take(bytes: Buffer): void {
    for (let rest = bytes; rest.length > 0;) {
      const taken =
        this.#greeted < this.handshake.expected.length
          ? this.#takeGreeting(rest)
          : this.#arriving === undefined
            ? this.#takeHeader(rest)
            : this.#takeData(this.#arriving, rest);
      rest = rest.subarray(taken);
    }
  }

  #takeGreeting(bytes: Buffer): number {
    const wanted = this.handshake.expected.subarray(this.#greeted, this.#greeted + bytes.length);
    const found = bytes.subarray(0, wanted.length);
    if (Buffer.compare(found, wanted) !== 0)
      throw new Error(`handshake: ${found.toString("hex")}, where ${wanted.toString("hex")} belongs`);
    this.#greeted += wanted.length;
    return wanted.length;
  }

  #takeHeader(bytes: Buffer): number {
    const taken = bytes.subarray(0, this.#headerBytes - this.#header.length);
    const header = Buffer.concat([this.#header, taken]);
    this.#header = header;
    if (header.length < this.#headerBytes) return taken.length;
    this.#headerBytes = headerBytes(header);
    if (this.#headerBytes > header.length) return taken.length;
    this.#header = NO_BYTES;
    this.#headerBytes = MAGIC_BYTES;
    this.#reply(header);
    return taken.length;
  }

  #reply(header: Buffer): void {
    const isSimple = header.readUInt32BE() === SIMPLE;
    const cookie = header.readBigUInt64BE(8);
    const command = this.#pending.get(cookie);
    if (command === undefined) throw new Error(`a reply to ${cookie}, which was not asked or is answered`);
    const { request } = command;
    const isRead = request.type === READ;
    if (isSimple) {
      if (isRead && this.handshake.structured) throw new Error("a simple reply to a read");
      const error = header.readUInt32BE(4);
      if (!isRead || error !== 0) return this.#finish(cookie, command, error);
      this.#expectData(command, 0, request.length, true);
      return;
    }
    if (!isRead || !this.handshake.structured) throw new Error("a structured reply where none belongs");
    const flags = header.readUInt16BE(4);
    const isLast = flags === 1;
    if (flags > 1) throw new Error(`a chunk with flags ${flags}`);
    if (header.readUInt16BE(6) === ERROR_CHUNK) {
      if (!isLast) throw new Error("an error that does not end the reply");
      return this.#finish(cookie, command, header.readUInt32BE(20));
    }
    const length = header.readUInt32BE(16) - 8;
    const at = Number(header.readBigUInt64BE(20) - request.offset);
    if ((request.flags & DF) !== 0 && length !== request.length) throw new Error("a fragment despite DF");
    this.#expectData(command, at, length, isLast);
  }

  #expectData(command: Command, at: number, length: number, isLast: boolean): void {
    const { errors, request } = command;
    if (errors.size > 0) throw new Error(`data, where error ${listed(errors)} was deserved`);
    if (at < 0 || length <= 0 || at + length > request.length || at % 512 !== 0 || length % 512 !== 0)
      throw new Error(`data of ${length} bytes at ${at} for a read of ${request.length}`);
    const got = this.#got.get(command) ?? new Uint8Array(request.length / 512);
    this.#got.set(command, got);
    const part = got.subarray(at / 512, (at + length) / 512);
    if (part.includes(1)) throw new Error("data that has come before");
    part.fill(1);
    if (isLast && got.includes(0)) throw new Error("a reply that ends without all of its data");
    this.#arriving = { command, at, left: length, isLast };
  }

  #takeData(arriving: Arriving, bytes: Buffer): number {
    const { command, at, isLast } = arriving;
    const count = Math.min(arriving.left, bytes.length);
    const from = Number(command.request.offset) + at;
    if (Buffer.compare(bytes.subarray(0, count), this.#disk.believed.subarray(from, from + count)) !== 0)
      throw new Error(`a read returns other bytes than those of the disk, at ${from}`);
    arriving.at += count;
    arriving.left -= count;
    if (arriving.left > 0) return count;
    this.#arriving = undefined;
    if (isLast) this.#finish(command.request.cookie, command, 0);
    return count;
  }

  #finish(cookie: bigint, command: Command, error: number): void {
    this.#pending.delete(cookie);
    this.#got.delete(command);
    try {
      this.#disk.end(command, error);
    } catch (failure) {
      throw new Error(`a reply with error ${error} to ${JSON.stringify(command.request, asText)}`, {
        cause: failure,
      });
    }
  }
}

/** How long the header is that begins with `header`, as far as that can be known. */
function headerBytes(header: Buffer): number {
  const magic = header.readUInt32BE();
  if (magic === SIMPLE) return 16;
  if (magic !== STRUCTURED) throw new Error(`a reply begins with ${magic.toString(16)}`);
  if (header.length < 20) return 20;
  const type = header.readUInt16BE(6);
  if (type === OFFSET_DATA) return 28;
  if (type !== ERROR_CHUNK) throw new Error(`a chunk of type ${type}`);
  return 20 + header.readUInt32BE(16);
}

function asText(_key: string, value: unknown): unknown {
  return typeof value === "bigint" ? String(value) : value;
}
