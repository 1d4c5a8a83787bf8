// The NBD protocol, newstyle (NetworkBlockDevice/nbd, doc/proto.md): magics, options, commands, errors, and the
// encoding of what a server sends and of a client's options and requests. All numbers are big-endian. Not included:
// extended headers, block status.

export const NBD_MAGIC_HIGH = 0x4e42_444d; // "NBDM"
export const NBD_MAGIC_LOW = 0x4147_4943; // "AGIC"
export const IHAVEOPT_HIGH = 0x4948_4156; // "IHAV"
export const IHAVEOPT_LOW = 0x454f_5054; // "EOPT"

export const OPTION_REPLY_HIGH = 0x0003_e889;
export const OPTION_REPLY_LOW = 0x0455_65a9;

export const NBD_FLAG_FIXED_NEWSTYLE = 1;
export const NBD_FLAG_NO_ZEROES = 2;

export const NBD_OPT_EXPORT_NAME = 1;
export const NBD_OPT_ABORT = 2;
export const NBD_OPT_LIST = 3;
export const NBD_OPT_STARTTLS = 5;
export const NBD_OPT_INFO = 6;
export const NBD_OPT_GO = 7;
export const NBD_OPT_STRUCTURED_REPLY = 8;

export const NBD_REP_ACK = 1;
export const NBD_REP_SERVER = 2;
export const NBD_REP_INFO = 3;
export const NBD_REP_ERR_UNSUP = 0x8000_0001;
export const NBD_REP_ERR_INVALID = 0x8000_0003;
export const NBD_REP_ERR_UNKNOWN = 0x8000_0006;
export const NBD_REP_ERR_TOO_BIG = 0x8000_0009;

export const NBD_INFO_EXPORT = 0;
export const NBD_INFO_NAME = 1;
export const NBD_INFO_DESCRIPTION = 2;
export const NBD_INFO_BLOCK_SIZE = 3;

/** Transmission flags: what an export can do. */
export const NBD_FLAG_HAS_FLAGS = 1 << 0;
export const NBD_FLAG_READ_ONLY = 1 << 1;
export const NBD_FLAG_SEND_FLUSH = 1 << 2;
export const NBD_FLAG_SEND_FUA = 1 << 3;
export const NBD_FLAG_SEND_TRIM = 1 << 5;
export const NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6;
export const NBD_FLAG_SEND_DF = 1 << 7;
export const NBD_FLAG_CAN_MULTI_CONN = 1 << 8;

export const NBD_CMD_READ = 0;
export const NBD_CMD_WRITE = 1;
export const NBD_CMD_DISC = 2;
export const NBD_CMD_FLUSH = 3;
export const NBD_CMD_TRIM = 4;
export const NBD_CMD_WRITE_ZEROES = 6;

export const NBD_CMD_FLAG_FUA = 1 << 0;
export const NBD_CMD_FLAG_NO_HOLE = 1 << 1;
export const NBD_CMD_FLAG_DF = 1 << 2;
/** A server that takes NBD_CMD_FLAG_DF takes it for reads up to this size. */
export const DF_BYTES = 64 * 1024;

export const NBD_EPERM = 1;
export const NBD_EIO = 5;
export const NBD_ENOMEM = 12;
export const NBD_EINVAL = 22;
export const NBD_ENOSPC = 28;
export const NBD_EOVERFLOW = 75;
export const NBD_ENOTSUP = 95;
/** No answer to the request: the server goes away. */
export const NBD_ESHUTDOWN = 108;

export const NBD_REQUEST_MAGIC = 0x2560_9513;
export const NBD_SIMPLE_REPLY_MAGIC = 0x6744_6698;
export const NBD_STRUCTURED_REPLY_MAGIC = 0x668e_33ef;

export const NBD_REPLY_FLAG_DONE = 1;
export const NBD_REPLY_TYPE_NONE = 0;
export const NBD_REPLY_TYPE_OFFSET_DATA = 1;
export const NBD_REPLY_TYPE_OFFSET_HOLE = 2;
/** Set in the type of every chunk that tells of an error. */
export const NBD_REPLY_TYPE_ERROR_BIT = 0x8000;
const NBD_REPLY_TYPE_ERROR = 0x8001;

/** A request: byte offsets of its fields. A write's payload follows. */
export const NBD_REQUEST = {
  bytes: 28,
  magic: 0,
  flags: 4,
  type: 6,
  cookie: 8,
  offset: 16,
  length: 24,
} as const;

export const OPTION_HEADER_BYTES = 16;
export const OPTION_REPLY_BYTES = 20;
export const SIMPLE_REPLY_BYTES = 16;
export const STRUCTURED_HEADER_BYTES = 20;
/** Header and offset that precede a chunk of read data. */
export const DATA_CHUNK_BYTES = STRUCTURED_HEADER_BYTES + 8;
/** Header, errno and an empty message. */
export const ERROR_CHUNK_BYTES = STRUCTURED_HEADER_BYTES + 6;

/** An export as a server describes it to a client. */
export interface NbdExport {
  readonly name: string;
  readonly description: string;
  readonly sizeBytes: number;
  /** NBD_FLAG_* of the transmission phase. */
  readonly flags: number;
  readonly minBlockBytes: number;
  readonly preferredBlockBytes: number;
  readonly maxBlockBytes: number;
}

/** The first message a server sends. */
export function encodeGreeting(): Uint8Array {
  const bytes = new Uint8Array(18);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, NBD_MAGIC_HIGH);
  view.setUint32(4, NBD_MAGIC_LOW);
  view.setUint32(8, IHAVEOPT_HIGH);
  view.setUint32(12, IHAVEOPT_LOW);
  view.setUint16(16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
  return bytes;
}

/** A client's option. */
export function encodeOption(option: number, data: Uint8Array = new Uint8Array(0)): Uint8Array {
  const bytes = new Uint8Array(OPTION_HEADER_BYTES + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, IHAVEOPT_HIGH);
  view.setUint32(4, IHAVEOPT_LOW);
  view.setUint32(8, option);
  view.setUint32(12, data.length);
  bytes.set(data, OPTION_HEADER_BYTES);
  return bytes;
}

/** The reply of type `type` to `option`. */
export function encodeOptionReply(
  option: number,
  type: number,
  data: Uint8Array = new Uint8Array(0),
): Uint8Array {
  const bytes = new Uint8Array(20 + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, OPTION_REPLY_HIGH);
  view.setUint32(4, OPTION_REPLY_LOW);
  view.setUint32(8, option);
  view.setUint32(12, type);
  view.setUint32(16, data.length);
  bytes.set(data, 20);
  return bytes;
}

/** The data of NBD_REP_INFO: the item `type`. */
export function encodeInfo(type: number, exported: NbdExport): Uint8Array {
  const text = type === NBD_INFO_NAME ? exported.name : exported.description;
  switch (type) {
    case NBD_INFO_EXPORT: {
      const bytes = new Uint8Array(12);
      const view = new DataView(bytes.buffer);
      view.setUint16(0, type);
      view.setBigUint64(2, BigInt(exported.sizeBytes));
      view.setUint16(10, exported.flags);
      return bytes;
    }
    case NBD_INFO_BLOCK_SIZE: {
      const bytes = new Uint8Array(14);
      const view = new DataView(bytes.buffer);
      view.setUint16(0, type);
      view.setUint32(2, exported.minBlockBytes);
      view.setUint32(6, exported.preferredBlockBytes);
      view.setUint32(10, exported.maxBlockBytes);
      return bytes;
    }
    default:
      return Buffer.concat([Uint8Array.of(0, type), Buffer.from(text)]);
  }
}

/** The final reply to NBD_OPT_EXPORT_NAME; this option has no other. */
export function encodeExportNameReply(exported: NbdExport, zeroes: boolean): Uint8Array {
  const bytes = new Uint8Array(zeroes ? 134 : 10);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(exported.sizeBytes));
  view.setUint16(8, exported.flags);
  return bytes;
}

/** The data of NBD_REP_SERVER. */
export function encodeServer(exported: NbdExport): Uint8Array {
  const name = Buffer.from(exported.name);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(name.length);
  return Buffer.concat([length, name, Buffer.from(exported.description)]);
}

/**
 * Writes a simple reply at `at` and returns its size in bytes. A read's data follows. The request's cookie is returned
 * unchanged, in two halves.
 */
export function writeSimpleReply(
  view: DataView,
  at: number,
  error: number,
  cookieHigh: number,
  cookieLow: number,
): number {
  view.setUint32(at, NBD_SIMPLE_REPLY_MAGIC);
  view.setUint32(at + 4, error);
  view.setUint32(at + 8, cookieHigh);
  view.setUint32(at + 12, cookieLow);
  return SIMPLE_REPLY_BYTES;
}

/** The same for a data chunk: `length` bytes of read data follow, from offset `offset` on the disk. */
export function writeDataChunk(
  view: DataView,
  at: number,
  done: boolean,
  cookieHigh: number,
  cookieLow: number,
  offset: number,
  length: number,
): number {
  const flags = done ? NBD_REPLY_FLAG_DONE : 0;
  writeChunkHeader(view, at, flags, NBD_REPLY_TYPE_OFFSET_DATA, cookieHigh, cookieLow, 8 + length);
  view.setUint32(at + 20, offset / 2 ** 32);
  view.setUint32(at + 24, offset >>> 0);
  return DATA_CHUNK_BYTES;
}

/** The same for the chunk that ends a failed read. */
export function writeErrorChunk(
  view: DataView,
  at: number,
  error: number,
  cookieHigh: number,
  cookieLow: number,
): number {
  writeChunkHeader(view, at, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR, cookieHigh, cookieLow, 6);
  view.setUint32(at + 20, error);
  view.setUint16(at + 24, 0);
  return ERROR_CHUNK_BYTES;
}

function writeChunkHeader(
  view: DataView,
  at: number,
  flags: number,
  type: number,
  cookieHigh: number,
  cookieLow: number,
  length: number,
): void {
  view.setUint32(at, NBD_STRUCTURED_REPLY_MAGIC);
  view.setUint16(at + 4, flags);
  view.setUint16(at + 6, type);
  view.setUint32(at + 8, cookieHigh);
  view.setUint32(at + 12, cookieLow);
  view.setUint32(at + 16, length);
}

/** Writes a client's request at `at`; returns its size in bytes. A write's data follows. */
export function writeRequest(
  view: DataView,
  at: number,
  flags: number,
  command: number,
  cookieHigh: number,
  cookieLow: number,
  offset: number,
  length: number,
): number {
  view.setUint32(at + NBD_REQUEST.magic, NBD_REQUEST_MAGIC);
  view.setUint16(at + NBD_REQUEST.flags, flags);
  view.setUint16(at + NBD_REQUEST.type, command);
  view.setUint32(at + NBD_REQUEST.cookie, cookieHigh);
  view.setUint32(at + NBD_REQUEST.cookie + 4, cookieLow);
  view.setUint32(at + NBD_REQUEST.offset, offset / 2 ** 32);
  view.setUint32(at + NBD_REQUEST.offset + 4, offset >>> 0);
  view.setUint32(at + NBD_REQUEST.length, length);
  return NBD_REQUEST.bytes;
}
