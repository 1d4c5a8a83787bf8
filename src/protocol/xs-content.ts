// The contents of a xenstore packet: its payload as path, values and error. Also whether bytes look like a packet at
// all, which is how a packet boundary is found in a ring whose beginning was overwritten. Source:
// docs/misc/xenstore.txt. Text keeps one character per byte, so nothing is lost, but it must be escaped.
import {
  XS_CONTROL,
  XS_DIRECTORY,
  XS_DIRECTORY_PART,
  XS_ERROR,
  XS_GET_DOMAIN_PATH,
  XS_GET_FEATURE,
  XS_GET_PERMS,
  XS_GET_QUOTA,
  XS_HEADER_BYTES,
  XS_IS_DOMAIN_INTRODUCED,
  XS_MKDIR,
  XS_PAYLOAD_MAX,
  XS_READ,
  XS_RESET_WATCHES,
  XS_RM,
  XS_SET_PERMS,
  XS_TRANSACTION_START,
  XS_UNWATCH,
  XS_WATCH,
  XS_WATCH_EVENT,
  XS_WRITE,
  xsTypeName,
} from "./xs-wire.ts";

/** The sender: the guest sends requests, the server responses (replies and watch events). */
export type XsDirection = "request" | "response";

export interface XsHeader {
  readonly type: number;
  readonly reqId: number;
  readonly txId: number;
  /** Announced payload size in bytes; above XS_PAYLOAD_MAX it violates the protocol. */
  readonly length: number;
}

export interface XsContent {
  /** The node that the packet concerns, if its type names one. */
  readonly path: string | undefined;
  /** The other strings: a value, a token, names, permissions, an error. */
  readonly values: readonly string[];
}

/** Types whose request begins with a node's path. */
const NODE_REQUESTS: ReadonlySet<number> = new Set([
  XS_DIRECTORY,
  XS_READ,
  XS_GET_PERMS,
  XS_WATCH,
  XS_UNWATCH,
  XS_WRITE,
  XS_MKDIR,
  XS_RM,
  XS_SET_PERMS,
  XS_DIRECTORY_PART,
]);
/** Types whose reply carries data; all others reply "OK". */
const DATA_REPLIES: ReadonlySet<number> = new Set([
  XS_CONTROL,
  XS_DIRECTORY,
  XS_READ,
  XS_GET_PERMS,
  XS_TRANSACTION_START,
  XS_GET_DOMAIN_PATH,
  XS_DIRECTORY_PART,
  XS_IS_DOMAIN_INTRODUCED,
  XS_GET_FEATURE,
  XS_GET_QUOTA,
]);
/** Types whose reply is raw bytes, not strings. */
const RAW_REPLIES: ReadonlySet<number> = new Set([XS_READ, XS_CONTROL]);
const MAY_BE_EMPTY: Readonly<Record<XsDirection, ReadonlySet<number>>> = {
  request: new Set([XS_TRANSACTION_START, XS_RESET_WATCHES]),
  response: new Set([XS_READ, XS_DIRECTORY]),
};
const OK = "OK\0";
const PATH_START = /^[A-Za-z0-9_/@:+-]+(?:\0|$)/;
const ERROR_REPLY = /^E[A-Z0-9]{1,15}\0$/;

/** Bytes as text, one character per byte. */
export function bytesToText(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1");
}

/** The header at `at` in `bytes`, or undefined if it is incomplete. */
export function readHeader(bytes: Uint8Array, at = 0): XsHeader | undefined {
  if (bytes.length - at < XS_HEADER_BYTES) return undefined;
  return {
    type: readU32(bytes, at),
    reqId: readU32(bytes, at + 4),
    txId: readU32(bytes, at + 8),
    length: readU32(bytes, at + 12),
  };
}

/** A quick test for bytes at `at` that cannot be a likely header: types are below 256, lengths below 64 KiB. */
export function isNoHeader(bytes: Uint8Array, at: number): boolean {
  const byte = (offset: number): number => bytes[at + offset];
  return (byte(1) | byte(2) | byte(3) | byte(14) | byte(15)) !== 0;
}

/**
 * Little-endian. Headers are tried at every byte of a ring, and creating a DataView for each would dominate the cost.
 */
function readU32(bytes: Uint8Array, at: number): number {
  const byte = (offset: number): number => bytes[at + offset];
  return (byte(0) | (byte(1) << 8) | (byte(2) << 16) | (byte(3) << 24)) >>> 0;
}

/** The name of a type, or its number if it has no name. */
export function typeText(type: number): string {
  return xsTypeName(type) ?? `TYPE_${type}`;
}

/** Decodes a payload of `type`, which may be truncated or not a xenstore payload at all. */
export function readContent(direction: XsDirection, type: number, payload: Uint8Array): XsContent {
  const text = bytesToText(payload);
  if (direction === "response" && RAW_REPLIES.has(type))
    return { path: undefined, values: [type === XS_CONTROL ? text.replace(/\0$/, "") : text] };
  if (direction === "request" && type === XS_WRITE) {
    const end = text.indexOf("\0");
    return end < 0 ? { path: text, values: [] } : { path: text.slice(0, end), values: [text.slice(end + 1)] };
  }
  const strings = text.length === 0 ? [] : text.replace(/\0$/, "").split("\0");
  const namesNode = direction === "request" ? NODE_REQUESTS.has(type) : type === XS_WATCH_EVENT;
  return namesNode
    ? { path: strings[0] ?? "", values: strings.slice(1) }
    : { path: undefined, values: strings };
}

/** Whether this could be a real header. Only for finding boundaries: real clients may send stranger ones. */
export function isLikelyHeader(direction: XsDirection, header: XsHeader): boolean {
  const { type, length } = header;
  if (xsTypeName(type) === undefined || length > XS_PAYLOAD_MAX) return false;
  if (direction === "request" && (type === XS_WATCH_EVENT || type === XS_ERROR)) return false;
  return length > 0 || MAY_BE_EMPTY[direction].has(type);
}

/** Whether `payload` could be what a likely `header` announces, or its beginning if it is shorter. */
export function isLikelyPayload(direction: XsDirection, header: XsHeader, payload: Uint8Array): boolean {
  const text = bytesToText(payload);
  const complete = payload.length >= header.length;
  if (direction === "request") {
    if (NODE_REQUESTS.has(header.type) && payload.length > 0 && !PATH_START.test(text)) return false;
    if (header.type === XS_WRITE) return !complete || text.includes("\0");
    return !complete || text.length === 0 || text.endsWith("\0");
  }
  if (header.type === XS_ERROR) return complete && ERROR_REPLY.test(text);
  if (header.type === XS_WATCH_EVENT)
    return PATH_START.test(text) && (!complete || (text.endsWith("\0") && text.split("\0").length >= 3));
  if (!DATA_REPLIES.has(header.type)) return text === OK;
  return !complete || RAW_REPLIES.has(header.type) || text.length === 0 || text.endsWith("\0");
}
