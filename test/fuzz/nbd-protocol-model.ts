// NBD as its document (doc/proto.md) has it, for one server and one export, written out by hand: what a server must
// say to any bytes during the handshake, and which errors a request deserves. Nothing of src/protocol is used.
import type { Disk } from "../../src/blkfront/handshake.ts";

export const EXPORT = "xvdb";
export const READ = 0;
export const WRITE = 1;
export const DISC = 2;
export const FLUSH = 3;
export const TRIM = 4;
export const WRITE_ZEROES = 6;
export const FUA = 1;
export const NO_HOLE = 2;
export const DF = 4;

export const EPERM = 1;
export const EIO = 5;
export const EINVAL = 22;
export const ENOSPC = 28;
export const EOVERFLOW = 75;
export const ENOTSUP = 95;

export const MAX_BYTES = 32 << 20;
/** A server that offers not to fragment reads must be able to do that with so many bytes. */
const MIN_WHOLE_BYTES = 65_536;
const MAX_OPTION_BYTES = 8192;
const DESCRIPTION = `PV disk ${EXPORT}`;
const IHAVEOPT = 0x49484156454f5054n;
const REPLY = Buffer.from("0003e889045565a9", "hex");
const ACK = 1;
const SERVER = 2;
const INFO = 3;
const UNSUP = 0x8000_0001;
const INVALID = 0x8000_0003;
const UNKNOWN = 0x8000_0006;
const TOO_BIG = 0x8000_0009;

/** The disk, and how the server serves it. */
export interface ServedDisk extends Disk {
  /** The most that the server sends in one piece. */
  readonly pieceBytes: number;
}

function canReadWhole({ pieceBytes }: ServedDisk): boolean {
  return pieceBytes >= MIN_WHOLE_BYTES;
}

export function numbers(...fields: readonly (readonly [bytes: 2 | 4 | 8, value: number | bigint])[]): Buffer {
  const parts = fields.map(([bytes, value]) => {
    const part = Buffer.alloc(bytes);
    if (bytes === 8) part.writeBigUInt64BE(BigInt(value));
    else part.writeUIntBE(Number(value), 0, bytes);
    return part;
  });
  return Buffer.concat(parts);
}

export function encodeOption(number: number, data: Uint8Array): Buffer {
  return Buffer.concat([numbers([8, IHAVEOPT], [4, number], [4, data.length]), data]);
}

function reply(option: number, type: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  return Buffer.concat([REPLY, numbers([4, option], [4, type], [4, data.length]), data]);
}

export type Phase = "flags" | "options" | "transmission" | "ended";

/** The server's side of one handshake. */
export class HandshakeModel {
  phase: Phase = "flags";
  structured = false;
  /** Everything that the client must get until the handshake is over. */
  expected: Buffer = Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), numbers([2, 3])]);
  /** Bytes that are not understood yet. After the handshake they belong to the first request. */
  rest: Buffer = Buffer.alloc(0);
  readonly #disk: ServedDisk;
  #noZeroes = false;
  /** Bytes of an option that is too big, still to come. */
  #skip = 0;

  constructor(disk: ServedDisk) {
    this.#disk = disk;
  }

  /** The client says `bytes`. */
  feed(bytes: Uint8Array): void {
    this.rest = Buffer.concat([this.rest, bytes]);
    while (this.#step());
  }

  #step(): boolean {
    const { rest, phase } = this;
    if (this.#skip > 0 && rest.length > 0) {
      this.rest = rest.subarray(this.#skip);
      this.#skip -= rest.length - this.rest.length;
      return true;
    }
    if (phase === "flags" && rest.length >= 4) {
      const flags = rest.readUInt32BE();
      this.phase = flags > 3 ? "ended" : "options";
      this.#noZeroes = (flags & 2) !== 0;
      this.rest = rest.subarray(4);
      return true;
    }
    if (phase !== "options" || rest.length < 16) return false;
    const option = rest.readUInt32BE(8);
    const length = rest.readUInt32BE(12);
    const isTooBig = length > MAX_OPTION_BYTES;
    if (rest.readBigUInt64BE() !== IHAVEOPT || length > MAX_BYTES || (isTooBig && option === 1)) {
      this.phase = "ended";
      return false;
    }
    if (!isTooBig && rest.length < 16 + length) return false;
    if (isTooBig) this.#say(reply(option, TOO_BIG));
    else this.#option(option, rest.subarray(16, 16 + length));
    this.#skip = isTooBig ? length : 0;
    this.rest = rest.subarray(isTooBig ? 16 : 16 + length);
    return true;
  }

  #option(option: number, data: Buffer): void {
    if (option === 1) this.#exportName(data);
    else if (option === 2) {
      this.#say(reply(option, ACK));
      this.phase = "ended";
    } else if (option === 3 && data.length === 0) {
      const entry = Buffer.concat([numbers([4, EXPORT.length]), Buffer.from(EXPORT + DESCRIPTION)]);
      this.#say(reply(option, SERVER, entry), reply(option, ACK));
    } else if (option === 8 && data.length === 0) {
      this.structured = true;
      this.#say(reply(option, ACK));
    } else if (option === 6 || option === 7) this.#describe(option, data);
    else this.#say(reply(option, option === 3 || option === 8 ? INVALID : UNSUP));
  }

  #exportName(name: Buffer): void {
    if (!isOurs(name)) {
      this.phase = "ended";
      return;
    }
    this.#say(this.#sizeAndFlags(), Buffer.alloc(this.#noZeroes ? 0 : 124));
    this.phase = "transmission";
  }

  #describe(option: number, data: Buffer): void {
    const nameLength = data.length < 6 ? Infinity : data.readUInt32BE();
    const items = 6 + nameLength;
    if (items > data.length || data.length !== items + 2 * data.readUInt16BE(items - 2))
      return this.#say(reply(option, INVALID));
    if (!isOurs(data.subarray(4, items - 2))) return this.#say(reply(option, UNKNOWN));
    const disk = this.#disk;
    const preferred = Math.max(4096, disk.physicalSectorBytes);
    const sizes = numbers([2, 3], [4, disk.logicalSectorBytes], [4, preferred], [4, MAX_BYTES]);
    this.#say(reply(option, INFO, Buffer.concat([numbers([2, 0]), this.#sizeAndFlags()])));
    this.#say(reply(option, INFO, sizes));
    const texts = new Map([
      [1, EXPORT],
      [2, DESCRIPTION],
    ]);
    for (let at = items; at < data.length; at += 2) {
      const item = data.readUInt16BE(at);
      const text = texts.get(item);
      if (text !== undefined)
        this.#say(reply(option, INFO, Buffer.concat([numbers([2, item]), Buffer.from(text)])));
      texts.delete(item);
    }
    this.#say(reply(option, ACK));
    if (option === 7) this.phase = "transmission";
  }

  #sizeAndFlags(): Buffer {
    const disk = this.#disk;
    let flags = 0x101 | (this.structured && canReadWhole(disk) ? 0x80 : 0); // HAS_FLAGS, CAN_MULTI_CONN; DF
    if (disk.canFlush || disk.canBarrier) flags |= 0xc;
    if (disk.readOnly) flags |= 2;
    else flags |= disk.canDiscard ? 0x60 : 0x40;
    return numbers([8, disk.sectors512 * 512], [2, flags]);
  }

  #say(...bytes: readonly Buffer[]): void {
    this.expected = Buffer.concat([this.expected, ...bytes]);
  }
}

function isOurs(name: Buffer): boolean {
  return name.length === 0 || name.toString("latin1") === EXPORT;
}

export interface Request {
  readonly magic: number;
  readonly flags: number;
  readonly type: number;
  readonly cookie: bigint;
  readonly offset: bigint;
  readonly length: number;
}

export function encodeRequest({ magic, flags, type, cookie, offset, length }: Request): Buffer {
  return numbers([4, magic], [2, flags], [2, type], [8, cookie], [8, offset], [4, length]);
}

export function changes(type: number): boolean {
  return type === WRITE || type === TRIM || type === WRITE_ZEROES;
}

/** Every error that `request` deserves; any of them may be its answer. None: it must be carried out. */
export function errorsOf(request: Request, disk: ServedDisk, structured: boolean): ReadonlySet<number> {
  const { flags, type, offset, length } = request;
  const errors = new Set<number>();
  const isDurable = disk.canFlush || disk.canBarrier;
  const allowed =
    (isDurable ? FUA : 0) |
    (type === WRITE_ZEROES ? NO_HOLE : 0) |
    (type === READ && structured && canReadWhole(disk) ? DF : 0);
  if ((flags & ~allowed) !== 0) errors.add(EINVAL);
  if (type === FLUSH) return isDurable ? errors : errors.add(EINVAL);
  if (changes(type) && disk.readOnly) errors.add(EPERM);
  if ((type !== READ && !changes(type)) || (type === TRIM && !disk.canDiscard)) return errors.add(EINVAL);
  const unit = disk.logicalSectorBytes;
  if (length === 0 || length % unit !== 0 || offset % BigInt(unit) !== 0n) errors.add(EINVAL);
  const isBeyondEnd = offset + BigInt(length) > BigInt(disk.sectors512 * 512);
  if (isBeyondEnd) errors.add(type === WRITE || type === WRITE_ZEROES ? ENOSPC : EINVAL);
  if ((type === READ || type === WRITE) && length > MAX_BYTES) errors.add(EINVAL);
  if ((flags & DF) !== 0 && type === READ && length > disk.pieceBytes) errors.add(EOVERFLOW);
  return errors;
}
