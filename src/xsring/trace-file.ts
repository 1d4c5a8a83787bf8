// A trace as a file: classic pcap with microseconds, link type 147 (LINKTYPE_USER0), so that capture tools can count,
// cut and merge it. Each record is an 8-byte header, then its content:
//   u8 version (1), u8 kind, u16 domid, u32 value; all little-endian, like the xenstore packets.
// Kinds: 1 request, 2 response (a whole xenstore packet follows); 3 and 4 bytes lost of requests or responses (value);
// 5 reset (value: bytes of unfinished packets; u32 microseconds since the previous look follow); 6 state (u32
// server_features, connection, error follow); 7 and 8 violation in requests or responses (text follows).
import { XentoolError } from "../core/errors.ts";
import { bytesToText, readHeader, type XsDirection } from "../protocol/xs-content.ts";
import { encodePacket, encodeText, XS_HEADER_BYTES, XS_PAYLOAD_MAX } from "../protocol/xs-wire.ts";
import type { TraceRecord } from "./ring-follower.ts";

const PCAP_MAGIC = 0xa1b2c3d4;
const PCAP_HEADER_BYTES = 24;
const RECORD_HEADER_BYTES = 16;
const HEAD_BYTES = 8;
const LINKTYPE_USER0 = 147;
const VERSION = 1;
const U32_MAX = 0xffff_ffff;
const SNAP_BYTES = HEAD_BYTES + XS_HEADER_BYTES + XS_PAYLOAD_MAX;

const KIND = { packet: [1, 2], lost: [3, 4], reset: 5, state: 6, violation: [7, 8] } as const;
const DIRECTIONS: readonly XsDirection[] = ["request", "response"];

/** The header of a trace file. */
export function traceFileHeader(): Uint8Array {
  const bytes = new Uint8Array(PCAP_HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, PCAP_MAGIC, true);
  view.setUint16(4, 2, true);
  view.setUint16(6, 4, true);
  view.setUint32(16, SNAP_BYTES, true);
  view.setUint32(20, LINKTYPE_USER0, true);
  return bytes;
}

/** One record of the ring of `domid`. */
export function encodeTraceRecord(record: TraceRecord, domid: number): Uint8Array {
  const { kind, value, body } = split(record);
  const size = HEAD_BYTES + body.length;
  const bytes = new Uint8Array(RECORD_HEADER_BYTES + size);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, Math.floor(record.timeUs / 1e6), true);
  view.setUint32(4, record.timeUs % 1e6, true);
  view.setUint32(8, size, true);
  view.setUint32(12, size, true);
  view.setUint8(16, VERSION);
  view.setUint8(17, kind);
  view.setUint16(18, domid, true);
  view.setUint32(20, value, true);
  bytes.set(body, RECORD_HEADER_BYTES + HEAD_BYTES);
  return bytes;
}

function split(record: TraceRecord): { kind: number; value: number; body: Uint8Array } {
  const empty = new Uint8Array(0);
  const side = "direction" in record ? DIRECTIONS.indexOf(record.direction) : 0;
  switch (record.kind) {
    case "packet": {
      const { type, reqId, txId } = record.header;
      return {
        kind: KIND.packet[side],
        value: 0,
        body: encodePacket(type, reqId, txId, record.payload),
      };
    }
    case "lost":
      return { kind: KIND.lost[side], value: record.bytes, body: empty };
    case "reset":
      return { kind: KIND.reset, value: record.bytes, body: words([Math.min(record.unseenUs, U32_MAX)]) };
    case "violation":
      return { kind: KIND.violation[side], value: 0, body: encodeText(record.reason) };
    case "state": {
      const { serverFeatures, connection, error } = record.words;
      return { kind: KIND.state, value: 0, body: words([serverFeatures, connection, error]) };
    }
  }
}

function words(values: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(4 * values.length);
  for (const [index, value] of values.entries()) viewOf(bytes).setUint32(4 * index, value, true);
  return bytes;
}

export interface ReadRecord {
  readonly domid: number;
  readonly record: TraceRecord;
}

/**
 * The records of a file that arrives in pieces. Fails with `usage` when it is not a trace file, and with `io` when it
 * ends within a record: a trace that was killed loses at most its last one.
 */
export async function* readTrace(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<ReadRecord> {
  let bytes: Uint8Array = new Uint8Array(0);
  let started = false;
  for await (const piece of pieces) {
    bytes = Buffer.concat([bytes, piece]);
    let at = 0;
    if (!started) {
      if (bytes.length < PCAP_HEADER_BYTES) continue;
      checkHeader(bytes);
      started = true;
      at = PCAP_HEADER_BYTES;
    }
    for (;;) {
      const size = recordSize(bytes, at);
      if (size === undefined || bytes.length - at < RECORD_HEADER_BYTES + size) break;
      yield decode(bytes.subarray(at, at + RECORD_HEADER_BYTES + size));
      at += RECORD_HEADER_BYTES + size;
    }
    bytes = bytes.subarray(at);
  }
  if (!started) throw notATrace("it is too short");
  if (bytes.length > 0) throw new XentoolError("io", "the trace ends within a record");
}

function notATrace(why: string): XentoolError {
  return new XentoolError("usage", `this is not a file of xsring trace --write: ${why}`);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

function checkHeader(bytes: Uint8Array): void {
  const view = viewOf(bytes);
  if (view.getUint32(0, true) !== PCAP_MAGIC)
    throw notATrace("it is not a little-endian pcap in microseconds");
  if (view.getUint32(20, true) !== LINKTYPE_USER0) throw notATrace("its link type is not 147");
}

/** Size of the record at `at`, without its header; undefined: not there yet. */
function recordSize(bytes: Uint8Array, at: number): number | undefined {
  if (bytes.length - at < RECORD_HEADER_BYTES) return undefined;
  const view = viewOf(bytes);
  const size = view.getUint32(at + 8, true);
  if (size < HEAD_BYTES || size > SNAP_BYTES || size !== view.getUint32(at + 12, true))
    throw notATrace(`a record has ${size} bytes`);
  return size;
}

function decode(bytes: Uint8Array): ReadRecord {
  const view = viewOf(bytes);
  const timeUs = view.getUint32(0, true) * 1e6 + (view.getUint32(4, true) % 1e6);
  if (view.getUint8(16) !== VERSION)
    throw notATrace(`version ${view.getUint8(16)} of its records is unknown`);
  const kind = view.getUint8(17);
  const value = view.getUint32(20, true);
  const body = bytes.slice(RECORD_HEADER_BYTES + HEAD_BYTES);
  return { domid: view.getUint16(18, true), record: { timeUs, ...join(kind, value, body) } };
}

function wordAt(body: Uint8Array, at: number): number {
  if (body.length < at + 4) throw notATrace("a record is too short");
  return viewOf(body).getUint32(at, true);
}

type Untimed<T> = T extends unknown ? Omit<T, "timeUs"> : never;

function join(kind: number, value: number, body: Uint8Array): Untimed<TraceRecord> {
  const direction = DIRECTIONS[(kind + 1) % 2];
  switch (kind) {
    case 1:
    case 2: {
      const header = readHeader(body);
      const payload = body.subarray(XS_HEADER_BYTES);
      if (header === undefined || header.length !== payload.length)
        throw notATrace("a packet has another length than it says");
      return { kind: "packet", direction, header, payload };
    }
    case 3:
    case 4:
      return { kind: "lost", direction, bytes: value };
    case 5:
      return { kind: "reset", bytes: value, unseenUs: wordAt(body, 0) };
    case 6:
      return {
        kind: "state",
        words: { serverFeatures: wordAt(body, 0), connection: wordAt(body, 4), error: wordAt(body, 8) },
      };
    case 7:
    case 8:
      return { kind: "violation", direction, reason: bytesToText(body) };
    default:
      throw notATrace(`a record is of unknown kind ${kind}`);
  }
}
