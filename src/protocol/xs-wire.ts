// The xenstore wire protocol: headers, operations, error names, strings, permissions and paths, plus an incremental
// packet parser. Bytes only. Source: docs/misc/xenstore.txt and public/io/xs_wire.h (MIT).

/** Size of a header in bytes: u32 type, req_id, tx_id, len, little-endian. */
export const XS_HEADER_BYTES = 16;
/** XENSTORE_PAYLOAD_MAX: the maximum payload in bytes, in both directions. */
export const XS_PAYLOAD_MAX = 4096;
/** XENSTORE_REL_PATH_MAX and XENSTORE_ABS_PATH_MAX. */
const XS_REL_PATH_MAX = 2048;
export const XS_ABS_PATH_MAX = 3072;

export const XS_CONTROL = 0;
export const XS_DIRECTORY = 1;
export const XS_READ = 2;
export const XS_GET_PERMS = 3;
export const XS_WATCH = 4;
export const XS_UNWATCH = 5;
export const XS_TRANSACTION_START = 6;
export const XS_TRANSACTION_END = 7;
export const XS_INTRODUCE = 8;
export const XS_RELEASE = 9;
export const XS_GET_DOMAIN_PATH = 10;
export const XS_WRITE = 11;
export const XS_MKDIR = 12;
export const XS_RM = 13;
export const XS_SET_PERMS = 14;
export const XS_WATCH_EVENT = 15;
export const XS_ERROR = 16;
export const XS_IS_DOMAIN_INTRODUCED = 17;
export const XS_RESUME = 18;
export const XS_SET_TARGET = 19;
export const XS_RESET_WATCHES = 21;
export const XS_DIRECTORY_PART = 22;
export const XS_GET_FEATURE = 23;
export const XS_SET_FEATURE = 24;
export const XS_GET_QUOTA = 25;
export const XS_SET_QUOTA = 26;
/** The type that a poisoned ring reads as; never valid. */
export const XS_INVALID = 0xffff;

const TYPE_NAMES: readonly (string | undefined)[] = [
  "CONTROL",
  "DIRECTORY",
  "READ",
  "GET_PERMS",
  "WATCH",
  "UNWATCH",
  "TRANSACTION_START",
  "TRANSACTION_END",
  "INTRODUCE",
  "RELEASE",
  "GET_DOMAIN_PATH",
  "WRITE",
  "MKDIR",
  "RM",
  "SET_PERMS",
  "WATCH_EVENT",
  "ERROR",
  "IS_DOMAIN_INTRODUCED",
  "RESUME",
  "SET_TARGET",
  undefined, // RESTRICT, removed in Xen 4.6
  "RESET_WATCHES",
  "DIRECTORY_PART",
  "GET_FEATURE",
  "SET_FEATURE",
  "GET_QUOTA",
  "SET_QUOTA",
];

/** The name of a message type without its XS_ prefix, or undefined for an unknown one. */
export function xsTypeName(type: number): string | undefined {
  return TYPE_NAMES[type];
}

/** The errors of xsd_errors in xs_wire.h. EQUOTA is specific to oxenstored; ECANCELED never appears. */
export type XsErrno =
  | "EINVAL"
  | "EACCES"
  | "EEXIST"
  | "EISDIR"
  | "ENOENT"
  | "ENOMEM"
  | "ENOSPC"
  | "EIO"
  | "ENOTEMPTY"
  | "ENOSYS"
  | "EROFS"
  | "EBUSY"
  | "EAGAIN"
  | "EISCONN"
  | "E2BIG"
  | "EPERM"
  | "EQUOTA";

export interface XsPacket {
  readonly type: number;
  readonly reqId: number;
  readonly txId: number;
  readonly payload: Uint8Array;
}

const NO_BYTES = new Uint8Array(0);
const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** xenstore text as UTF-8 bytes, without a NUL. */
export function encodeText(text: string): Uint8Array {
  return encoder.encode(text);
}

/** xenstore bytes as text; invalid UTF-8 becomes U+FFFD. */
export function decodeText(bytes: Uint8Array): string {
  return decoder.decode(bytes);
}

/** Each part followed by a NUL, the encoding of paths and tokens. */
export function encodeStrings(...parts: readonly string[]): Uint8Array {
  return encoder.encode(parts.map((part) => `${part}\0`).join(""));
}

/** `path`, a NUL, then `value` unchanged: the payload of XS_WRITE. */
export function encodePathAndValue(path: string, value: Uint8Array): Uint8Array {
  const head = encodeStrings(path);
  const payload = new Uint8Array(head.length + value.length);
  payload.set(head);
  payload.set(value, head.length);
  return payload;
}

/** The NUL-terminated strings of a payload, or undefined if the last NUL is missing. */
export function decodeStrings(payload: Uint8Array): string[] | undefined {
  if (payload.length === 0) return [];
  if (payload[payload.length - 1] !== 0) return undefined;
  return decoder.decode(payload.subarray(0, -1)).split("\0");
}

/** A complete packet. The caller has checked that the payload does not exceed XS_PAYLOAD_MAX. */
export function encodePacket(
  type: number,
  reqId: number,
  txId: number,
  payload: Uint8Array = NO_BYTES,
): Uint8Array {
  const packet = new Uint8Array(XS_HEADER_BYTES + payload.length);
  const view = new DataView(packet.buffer);
  view.setUint32(0, type, true);
  view.setUint32(4, reqId, true);
  view.setUint32(8, txId, true);
  view.setUint32(12, payload.length, true);
  packet.set(payload, XS_HEADER_BYTES);
  return packet;
}

/** How a parser treats a length above XS_PAYLOAD_MAX: refuse it, or clamp it as oxenstored does. */
export type OverlongPolicy = "violation" | "clamp";

const KEPT_BUFFER_BYTES = 8192;

/**
 * Turns a byte stream, in fragments of any size, into packets. `push` the received bytes, then call `next` until it
 * returns undefined. A header that announces too much sets `violation` to the announced length, and the stream yields
 * no further packets. The parser holds only what was pushed and not yet taken.
 */
export class XsPacketParser {
  /** The announced payload length that broke the protocol. */
  violation: number | undefined;
  readonly #overlong: OverlongPolicy;
  #buffer = NO_BYTES;
  #view = new DataView(NO_BYTES.buffer);
  #start = 0;
  #end = 0;

  constructor(overlong: OverlongPolicy = "violation") {
    this.#overlong = overlong;
  }

  /** Bytes pushed but not yet taken as packets. */
  get bufferedBytes(): number {
    return this.#end - this.#start;
  }

  push(bytes: Uint8Array): void {
    if (this.violation !== undefined) return;
    if (this.#end + bytes.length > this.#buffer.length) this.#makeRoom(bytes.length);
    this.#buffer.set(bytes, this.#end);
    this.#end += bytes.length;
  }

  /** The next complete packet, whose payload is a copy, or undefined. */
  next(): XsPacket | undefined {
    const available = this.bufferedBytes;
    if (this.violation !== undefined) return undefined;
    if (available < XS_HEADER_BYTES) return this.#waitForMore();
    const at = this.#start;
    const announced = this.#view.getUint32(at + 12, true);
    if (announced > XS_PAYLOAD_MAX && this.#overlong === "violation") {
      this.violation = announced;
      return undefined;
    }
    const end = at + XS_HEADER_BYTES + Math.min(announced, XS_PAYLOAD_MAX);
    if (end > this.#end) return this.#waitForMore();
    const packet = {
      type: this.#view.getUint32(at, true),
      reqId: this.#view.getUint32(at + 4, true),
      txId: this.#view.getUint32(at + 8, true),
      payload: this.#buffer.slice(at + XS_HEADER_BYTES, end),
    };
    this.#start = end;
    if (end === this.#end) this.#release();
    return packet;
  }

  /** Forgets everything, including a violation: the stream restarts at a packet boundary. */
  reset(): void {
    this.violation = undefined;
    this.#release();
  }

  /** Avoids keeping a large buffer just for a partial packet. */
  #waitForMore(): undefined {
    if (this.#buffer.length <= KEPT_BUFFER_BYTES || this.#start === 0) return;
    const rest = this.#buffer.slice(this.#start, this.#end);
    this.#start = 0;
    this.#end = rest.length;
    this.#adopt(rest);
  }

  #release(): void {
    this.#start = 0;
    this.#end = 0;
    if (this.#buffer.length > KEPT_BUFFER_BYTES) this.#adopt(NO_BYTES);
  }

  #makeRoom(extra: number): void {
    const kept = this.bufferedBytes;
    const needed = kept + extra;
    const larger =
      needed > this.#buffer.length ? new Uint8Array(Math.max(needed, 2 * this.#buffer.length)) : this.#buffer;
    larger.set(this.#buffer.subarray(this.#start, this.#end));
    this.#adopt(larger);
    this.#start = 0;
    this.#end = kept;
  }

  #adopt(buffer: Uint8Array<ArrayBuffer>): void {
    this.#buffer = buffer;
    this.#view = new DataView(buffer.buffer);
  }
}

/** A domain's access to a node. The first entry of a list names the owner and the access of all others. */
export type XsAccess = "none" | "read" | "write" | "both";

export interface XsPermission {
  readonly domid: number;
  readonly access: XsAccess;
}

const ACCESS_LETTERS: Readonly<Record<XsAccess, string>> = { none: "n", read: "r", write: "w", both: "b" };
const LETTER_ACCESS: Readonly<Record<string, XsAccess>> = { n: "none", r: "read", w: "write", b: "both" };

/** In wire format: `n0`, `r5`, `w5`, `b5`. */
export function formatPermission(permission: XsPermission): string {
  return `${ACCESS_LETTERS[permission.access]}${permission.domid}`;
}

/** Parses a permission in wire format; undefined if it is not one. */
export function parsePermission(text: string): XsPermission | undefined {
  const match = /^([nrwb])([0-9]{1,5})$/.exec(text);
  const domid = Number(match?.[2]);
  if (match === null || domid > 0xffff) return undefined;
  return { domid, access: LETTER_ACCESS[match[1]] };
}

const PATH = /^(?:\/|\/?[A-Za-z0-9_@-]+(?:\/[A-Za-z0-9_@-]+)*)$/;

/** Whether `path` is a valid node path: allowed characters, no empty component, no trailing slash, not too long. */
export function isValidPath(path: string): boolean {
  return path.length <= (path.startsWith("/") ? XS_ABS_PATH_MAX : XS_REL_PATH_MAX) && PATH.test(path);
}

/** Whether `path` is a special one, `@introduceDomain` or `@releaseDomain/5`: not a node, can only be watched. */
export function isSpecialPath(path: string): boolean {
  return path.startsWith("@");
}

/** The parent path; "/" for a top-level path and for "/" itself. */
export function parentPath(path: string): string {
  const slash = path.lastIndexOf("/");
  return slash <= 0 ? "/" : path.slice(0, slash);
}

/** `name` below `path`. */
export function joinPath(path: string, name: string): string {
  return path === "/" ? `/${name}` : `${path}/${name}`;
}

/** The node names along the way from "/" to `path`. */
export function nodeNames(path: string): string[] {
  return path === "/" ? [] : path.slice(1).split("/");
}

/** Whether `path` is `ancestor` or below it. */
export function isWithin(path: string, ancestor: string): boolean {
  return ancestor === "/" ? path.startsWith("/") : path === ancestor || path.startsWith(`${ancestor}/`);
}
