// A snapshot of a xenstore ring page: a private copy, in which both streams are walked from the consumer's index to
// find what is waiting, what is incomplete, and which consumed bytes can still be recovered because they were not
// overwritten. Nothing in the page is trusted; every walk stays within the stream's 1,024 bytes.
import {
  isLikelyHeader,
  isLikelyPayload,
  isNoHeader,
  readHeader,
  typeText,
  type XsDirection,
  type XsHeader,
} from "./xs-content.ts";
import {
  XS_RING_BYTES,
  XS_RING_CONNECTION,
  XS_RING_ERROR,
  XS_RING_EVTCHN_PORT,
  XS_RING_REQ_CONS,
  XS_RING_REQ_PROD,
  XS_RING_RSP_CONS,
  XS_RING_RSP_PROD,
  XS_RING_SERVER_FEATURES,
  type XsRingPage,
} from "./xs-ring.ts";
import { XS_HEADER_BYTES, XS_PAYLOAD_MAX, xsTypeName } from "./xs-wire.ts";

export interface RingWords {
  readonly reqCons: number;
  readonly reqProd: number;
  readonly rspCons: number;
  readonly rspProd: number;
  /** server_features; called server_version in the RFC of 2014. */
  readonly serverFeatures: number;
  /** connection; called closing in the RFC. */
  readonly connection: number;
  readonly error: number;
  readonly evtchnPort: number;
}

/** A copy of a ring page. */
export interface RingCopy {
  /** The words before the bytes were copied. */
  readonly words: RingWords;
  /** The words after copying: the producers' progress shows what was overwritten meanwhile. */
  readonly after: RingWords;
  readonly requests: Uint8Array;
  readonly responses: Uint8Array;
}

export interface RingPacket {
  /** Index of its first byte in the stream. */
  readonly at: number;
  readonly header: XsHeader;
  readonly payload: Uint8Array;
}

/** A packet that is partly missing or partly consumed already. */
export interface RingFragment {
  readonly at: number;
  /** Undefined while fewer than its 16 bytes are present. */
  readonly header: XsHeader | undefined;
  /** Bytes produced, header included, and how many of those were consumed. */
  readonly producedBytes: number;
  readonly takenBytes: number;
  /** The visible part of the payload. */
  readonly payload: Uint8Array;
}

export type Poison = "0xff" | "deadbeef" | "zeroes";

export interface RingStreamView {
  readonly direction: XsDirection;
  readonly cons: number;
  readonly prod: number;
  /** Bytes waiting; undefined if the indices are further apart than the stream is long. */
  readonly usedBytes: number | undefined;
  /** The filling of the part not written since the ring was made or reset. */
  readonly poison: Poison | undefined;
  /** Consumed packets that can still be read, oldest first. */
  readonly consumed: readonly RingPacket[];
  /** The packet that the consumer has partly read. */
  readonly crossing: RingFragment | undefined;
  /** Complete packets that are waiting. */
  readonly waiting: readonly RingPacket[];
  /** The packet that the producer has partly written. */
  readonly partial: RingFragment | undefined;
  /** Why the waiting bytes are not a sequence of packets. */
  readonly violation: { readonly at: number; readonly reason: string } | undefined;
  /** Whether the consumer is at a packet boundary, as far as can be seen; undefined if unknown. */
  readonly atBoundary: boolean | undefined;
}

const COPY_ATTEMPTS = 16;
const LOAD_ATTEMPTS = 64;
const WORDS_START = XS_RING_REQ_CONS;
const WORDS_END = XS_RING_EVTCHN_PORT + 4;
const DEADBEEF = new TextEncoder().encode("deadbeef");
const POISON_BYTES_MIN = XS_HEADER_BYTES;

/** All words as of one moment. The page may be read-only. */
export function loadRingWords(page: XsRingPage): RingWords {
  let words = copyWords(page);
  for (let attempt = 1; attempt < LOAD_ATTEMPTS; attempt++) {
    const again = copyWords(page);
    if (words.every((word, index) => word === again[index])) break;
    words = again;
  }
  const at = (offset: number): number => words[(offset - WORDS_START) >> 2];
  return {
    reqCons: at(XS_RING_REQ_CONS),
    reqProd: at(XS_RING_REQ_PROD),
    rspCons: at(XS_RING_RSP_CONS),
    rspProd: at(XS_RING_RSP_PROD),
    serverFeatures: at(XS_RING_SERVER_FEATURES),
    connection: at(XS_RING_CONNECTION),
    error: at(XS_RING_ERROR),
    evtchnPort: at(XS_RING_EVTCHN_PORT),
  };
}

/** Does not use Atomics: Atomics.load compiles to a locked exchange, which faults on a read-only mapping. */
function copyWords(page: XsRingPage): Uint32Array {
  return new Uint32Array(page.bytes.slice(WORDS_START, WORDS_END).buffer);
}

/** A single copy of the page while it may be changing, with the indices before and after. */
export function copyRing(page: XsRingPage): RingCopy {
  const words = loadRingWords(page);
  const bytes = page.bytes.slice(0, 2 * XS_RING_BYTES);
  const after = loadRingWords(page);
  return {
    words,
    after,
    requests: bytes.subarray(0, XS_RING_BYTES),
    responses: bytes.subarray(XS_RING_BYTES),
  };
}

/** A copy during which nothing moved; after several failed attempts, one of the busy ring as it is. */
export function copyRingAtRest(page: XsRingPage): RingCopy {
  let copy = copyRing(page);
  for (let attempt = 1; attempt < COPY_ATTEMPTS && !isAtRest(copy); attempt++) copy = copyRing(page);
  return copy;
}

/** Whether neither side moved while it was copied. */
export function isAtRest({ words, after }: RingCopy): boolean {
  return (Object.keys(words) as (keyof RingWords)[]).every((name) => words[name] === after[name]);
}

export function viewRequests(copy: RingCopy): RingStreamView {
  return viewStream("request", copy.requests, copy.words.reqCons, copy.words.reqProd);
}

export function viewResponses(copy: RingCopy): RingStreamView {
  return viewStream("response", copy.responses, copy.words.rspCons, copy.words.rspProd);
}

/** `count` bytes of a stream from `index` on, in stream order. */
export function streamBytes(ring: Uint8Array, index: number, count: number): Uint8Array {
  const start = index % XS_RING_BYTES;
  const bytes = new Uint8Array(count);
  const head = ring.subarray(start, Math.min(start + count, XS_RING_BYTES));
  bytes.set(head);
  bytes.set(ring.subarray(0, count - head.length), head.length);
  return bytes;
}

function viewStream(direction: XsDirection, ring: Uint8Array, cons: number, prod: number): RingStreamView {
  const used = (prod - cons) >>> 0;
  const possible = used <= XS_RING_BYTES;
  const base = { direction, cons, prod, poison: findPoison(ring, prod) };
  const nothing = { consumed: [], crossing: undefined, waiting: [], partial: undefined };
  if (!possible)
    return { ...base, ...nothing, usedBytes: undefined, violation: undefined, atBoundary: undefined };
  return {
    ...base,
    usedBytes: used,
    ...walk(direction, ring, cons, prod),
  };
}

type Walked = Pick<
  RingStreamView,
  "consumed" | "crossing" | "waiting" | "partial" | "violation" | "atBoundary"
>;

/**
 * Interprets the bytes around the consumer. It first assumes that the consumer is at a boundary; only if that makes no
 * sense does it look for an earlier packet that reaches across. Nothing exists before index 0: what the ring held
 * before a restart, or before its indices wrapped after 4 GiB, does not count.
 */
function walk(direction: XsDirection, ring: Uint8Array, cons: number, prod: number): Walked {
  const used = (prod - cons) >>> 0;
  const past = Math.max(0, Math.min(prod, XS_RING_BYTES) - used);
  const start = (cons - past) >>> 0;
  const before = streamBytes(ring, start, past);
  const ahead = streamBytes(ring, cons, used);
  const history = findPackets(direction, before, start);
  const forward = walkForward(ahead, cons);
  const likely = forward.violation === undefined && isLikelySequence(direction, forward);
  if (history?.rest !== undefined && !likely)
    return walkAcross(history.packets, history.rest, before, ahead, start, cons);
  const ends = history !== undefined && history.rest === undefined;
  const consumed = ends ? history.packets : [];
  const atBoundary = forward.violation === undefined && (cons === 0 || ends || likely) ? true : undefined;
  return { consumed, crossing: undefined, ...forward, atBoundary };
}

/** Whether there is anything at all, and it looks like what real clients and servers send. */
function isLikelySequence(
  direction: XsDirection,
  { waiting, partial }: Pick<RingStreamView, "waiting" | "partial">,
): boolean {
  const { header } = partial ?? {};
  if (header !== undefined && !isLikelyHeader(direction, header)) return false;
  return (waiting.length > 0 || header !== undefined) && waiting.every((each) => isLikely(direction, each));
}

/** The case of a packet that begins at `rest` in `before` and reaches into `ahead`. */
function walkAcross(
  consumed: readonly RingPacket[],
  rest: number,
  before: Uint8Array,
  ahead: Uint8Array,
  start: number,
  cons: number,
): Walked {
  const bytes = new Uint8Array(before.length - rest + ahead.length);
  bytes.set(before.subarray(rest));
  bytes.set(ahead, before.length - rest);
  const header = readHeader(bytes);
  const size = header === undefined ? Infinity : XS_HEADER_BYTES + header.length;
  const end = Math.min(size, bytes.length);
  const takenBytes = before.length - rest;
  const crossing: RingFragment = {
    at: (start + rest) >>> 0,
    header,
    producedBytes: end,
    takenBytes,
    payload: bytes.subarray(Math.min(XS_HEADER_BYTES, end), end),
  };
  const forward = walkForward(bytes.subarray(end), (cons + end - takenBytes) >>> 0);
  return { consumed, crossing, ...forward, atBoundary: false };
}

/** Consecutive packets from a boundary on, split as the server would split them. */
function walkForward(
  bytes: Uint8Array,
  index: number,
): Pick<RingStreamView, "waiting" | "partial" | "violation"> {
  const waiting: RingPacket[] = [];
  let partial: RingFragment | undefined;
  let violation: RingStreamView["violation"];
  for (let at = 0; at < bytes.length && partial === undefined;) {
    const position = (index + at) >>> 0;
    const header = readHeader(bytes, at);
    const reason = header === undefined ? undefined : headerViolation(header, bytes.subarray(at), position);
    if (reason !== undefined) {
      violation = { at: position, reason };
      break;
    }
    const end = at + XS_HEADER_BYTES + (header?.length ?? 0);
    const payload = bytes.subarray(Math.min(at + XS_HEADER_BYTES, bytes.length), end);
    if (header === undefined || end > bytes.length)
      partial = { at: position, header, producedBytes: bytes.length - at, takenBytes: 0, payload };
    else waiting.push({ at: position, header, payload });
    at = end;
  }
  return { waiting, partial, violation };
}

function headerViolation(header: XsHeader, bytes: Uint8Array, index: number): string | undefined {
  const poison = poisonOf(bytes.subarray(0, XS_HEADER_BYTES), index);
  if (poison === "0xff" || poison === "deadbeef") return `poison (${poison}) where a packet should begin`;
  if (header.length > XS_PAYLOAD_MAX)
    return `a packet (${typeText(header.type)}) that announces ${header.length} bytes, above ${XS_PAYLOAD_MAX}`;
  if (xsTypeName(header.type) === undefined) return `a packet of unknown type ${header.type}`;
  return undefined;
}

function isLikely(direction: XsDirection, { header, payload }: RingPacket): boolean {
  return isLikelyHeader(direction, header) && isLikelyPayload(direction, header, payload);
}

/** Packets up to the end of some bytes, and where a final incomplete one begins. */
export interface FoundPackets {
  readonly packets: readonly RingPacket[];
  readonly rest: number | undefined;
}

/**
 * Finds the packets in bytes whose first byte may lie anywhere within a packet: the longest chain of likely packets
 * that ends exactly with the bytes, otherwise one whose last packet is cut off there. Undefined if there is none.
 * `index` is the stream index of the first byte.
 */
export function findPackets(
  direction: XsDirection,
  bytes: Uint8Array,
  index: number,
): FoundPackets | undefined {
  const end = bytes.length;
  const EXACT = 1;
  const CUT = 2;
  const chain = new Uint8Array(end + 1); // how the chain from here ends; 0: no chain
  chain[end] = EXACT;
  const starts: Partial<Record<number, number>> = {};
  for (let at = Math.max(0, end - XS_HEADER_BYTES + 1); at < end; at++) {
    if (!isLikelyHeaderStart(bytes.subarray(at))) continue;
    chain[at] = CUT;
    if (at === 0 && index === 0) starts[CUT] = 0;
  }
  for (let at = end - XS_HEADER_BYTES; at >= 0; at--) {
    const header = isNoHeader(bytes, at) ? undefined : readHeader(bytes, at);
    if (header === undefined || !isLikelyHeader(direction, header)) continue;
    const next = at + XS_HEADER_BYTES + header.length;
    const kind = next > end ? CUT : chain[next];
    const payload = bytes.subarray(at + XS_HEADER_BYTES, Math.min(next, end));
    if (kind === 0 || !isLikelyPayload(direction, header, payload)) continue;
    chain[at] = kind;
    // A truncated reply with arbitrary bytes is too weak evidence to start a chain, unless the stream starts here.
    if (next <= end || direction === "request" || (at === 0 && index === 0)) starts[kind] = at;
  }
  const first = starts[EXACT] ?? starts[CUT];
  if (first === undefined) return undefined;
  const packets: RingPacket[] = [];
  for (let at = first; ;) {
    const header = readHeader(bytes, at);
    if (header === undefined) return { packets, rest: at < end ? at : undefined };
    const next = at + XS_HEADER_BYTES + header.length;
    if (next > end) return { packets, rest: at };
    packets.push({
      at: (index + at) >>> 0,
      header,
      payload: bytes.subarray(at + XS_HEADER_BYTES, next),
    });
    at = next;
  }
}

/** Whether a truncated header could be a real one: types are small numbers. */
function isLikelyHeaderStart(bytes: Uint8Array): boolean {
  return xsTypeName(bytes[0]) !== undefined && bytes.subarray(1, 4).every((byte) => byte === 0);
}

function findPoison(ring: Uint8Array, prod: number): Poison | undefined {
  if (prod > XS_RING_BYTES - POISON_BYTES_MIN) return undefined;
  return poisonOf(ring.subarray(prod), prod);
}

/** The kind of poison that fills bytes beginning at `index` of a stream. */
function poisonOf(bytes: Uint8Array, index: number): Poison | undefined {
  if (bytes.every((byte) => byte === 0xff)) return "0xff";
  if (bytes.every((byte) => byte === 0)) return "zeroes";
  return bytes.every((byte, at) => byte === DEADBEEF[(index + at) % 8]) ? "deadbeef" : undefined;
}
