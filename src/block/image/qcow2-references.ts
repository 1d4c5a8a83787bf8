// The other files that a qcow2 names in its header. Whoever opens the image opens those, too, with his own rights. Read
// as QEMU does (block/qcow2.c as documented in docs/interop/qcow2.txt), because QEMU's storage daemon will.
import { escapeControls } from "../../core/log.ts";
import { QCOW2_DATA_FILE, readQcow2Header } from "../../protocol/qcow2.ts";

/** Names with a character for each byte. */
export interface Qcow2References {
  readonly backing?: string | undefined;
  /** Without it, the format is guessed from what is in the backing file. */
  readonly backingFormat?: string | undefined;
  readonly dataFile?: string | undefined;
}

/** A longer name is an error to QEMU. */
const NAME_MAX = 1023;
/** Characters of a name in a message. */
const SHOWN_MAX = 200;
const EXTENSION_HEADER_BYTES = 8;
const END_OF_EXTENSIONS = 0;
const BACKING_FORMAT = 0xe279_2aca;
const DATA_FILE = 0x4441_5441;

/** What is named in an image that begins with `head`, all of its first cluster; undefined if that cannot be told. */
export function readReferences(head: Uint8Array): Qcow2References | undefined {
  const header = readQcow2Header(head);
  if (header === undefined || head.length < 2 ** header.clusterBits) return undefined;
  const cluster = Buffer.from(head.buffer, head.byteOffset, 2 ** header.clusterBits);
  const { backingOffset, backingLength, headerBytes, incompatible } = header;
  if (backingOffset > cluster.length || headerBytes > cluster.length) return undefined;
  if (backingOffset > 0 && backingLength > Math.min(NAME_MAX, cluster.length - backingOffset))
    return undefined;
  const end = backingOffset === 0 ? cluster.length : backingOffset;
  const extensions = readExtensions(cluster.subarray(0, end), headerBytes);
  if (extensions === undefined) return undefined;
  const backing = backingOffset === 0 ? "" : nameAt(cluster, backingOffset, backingLength);
  const hasDataFile = (incompatible & QCOW2_DATA_FILE) !== 0n;
  return {
    ...(backing !== "" && { backing, backingFormat: extensions.get(BACKING_FORMAT) }),
    ...(hasDataFile && { dataFile: extensions.get(DATA_FILE) ?? "" }),
  };
}

/** Their contents as names, by kind; the last one of a kind counts. */
function readExtensions(bytes: Buffer, from: number): Map<number, string> | undefined {
  const found = new Map<number, string>();
  for (let at = from; at < bytes.length;) {
    if (at + EXTENSION_HEADER_BYTES > bytes.length) return undefined;
    const [kind, length] = [bytes.readUInt32BE(at), bytes.readUInt32BE(at + 4)];
    at += EXTENSION_HEADER_BYTES;
    if (length > bytes.length - at) return undefined;
    if (kind === END_OF_EXTENSIONS) break;
    found.set(kind, nameAt(bytes, at, length));
    at += Math.ceil(length / 8) * 8;
  }
  return found;
}

/** QEMU takes names for strings of C. */
function nameAt(bytes: Buffer, at: number, length: number): string {
  const name = bytes.toString("latin1", at, at + length);
  const end = name.indexOf("\0");
  return end < 0 ? name : name.slice(0, end);
}

/** Whether all that is named `now` was named `before`. Of a backing file that stays, the format must stay, too. */
export function isWithin(now: Qcow2References, before: Qcow2References): boolean {
  const isBacked = now.backing === undefined || isSameBacking(now, before);
  return isBacked && (now.dataFile === undefined || now.dataFile === before.dataFile);
}

function isSameBacking(one: Qcow2References, other: Qcow2References): boolean {
  return one.backing === other.backing && one.backingFormat === other.backingFormat;
}

/** "backing file /images/base.img (raw)". */
export function describeReferences({ backing, backingFormat, dataFile }: Qcow2References): string {
  const named = [
    ...(backing === undefined
      ? []
      : [`backing file ${shown(backing)} (${shown(backingFormat ?? "format not given")})`]),
    ...(dataFile === undefined ? [] : [`data file ${shown(dataFile)}`]),
  ];
  return named.length === 0 ? "no other file" : named.join(" and ");
}

function shown(name: string): string {
  return escapeControls(Buffer.from(name, "latin1").toString("utf8"), SHOWN_MAX);
}
