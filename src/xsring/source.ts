// Where a ring page comes from: another domain's reserved grant reference 1, which its builder granted to the
// xenstore domain; our own domain's ring, where the platform allows it; or a file that holds a page.
import { readFile } from "node:fs/promises";
import { XentoolError } from "../core/errors.ts";
import { PAGE_SIZE, type Domid } from "../core/types.ts";
import { isDomainUnknown, noDomain } from "../platform/domains.ts";
import type { Access, Platform } from "../platform/platform.ts";
import type { XsRingPage } from "../protocol/xs-ring.ts";
import { FILE_BYTES_MAX, RING_BYTES_MIN } from "./bounds.ts";

/** GNTTAB_RESERVED_XENSTORE of public/grant_table.h. */
const GNTTAB_RESERVED_XENSTORE = 1;

/** A ring page that must be closed. */
export interface OpenRingPage extends Disposable {
  readonly page: XsRingPage;
  close(): void;
}

/**
 * Maps the ring of `domid`. Fails with `environment` when the domain does not exist, its grant entry was overwritten,
 * or xenstore runs in another domain than ours, which then holds the grant.
 */
export function openDomainRing(platform: Platform, domid: Domid, access: Access): OpenRingPage {
  if (domid === platform.domid) {
    const message = `domain ${domid} is this domain: its ring belongs to its kernel (see xsring close --self)`;
    throw new XentoolError("usage", message, { domid });
  }
  const grants = platform.openGrantTable();
  try {
    const page = grants.map(domid, [GNTTAB_RESERVED_XENSTORE], access);
    const close = (): void => {
      page.close();
      grants.close();
    };
    return { page, close, [Symbol.dispose]: close };
  } catch (error) {
    grants.close();
    if (isDomainUnknown(platform, domid)) throw noDomain(domid);
    const message = `cannot map the xenstore ring of domain ${domid}; is this the xenstore domain?`;
    throw new XentoolError("environment", message, { domid }, error);
  }
}

/** The page in a file, raw or hexadecimal; "-" is stdin. Fails with `usage` when the file holds no page. */
export async function readRingFile(path: string): Promise<XsRingPage> {
  const bytes = path === "-" ? await readBounded(Bun.stdin.stream()) : await readNamed(path);
  return parseRingPage(bytes);
}

async function readNamed(path: string): Promise<Uint8Array> {
  const file = Bun.file(path);
  try {
    if (file.size <= FILE_BYTES_MAX) return await readFile(path);
  } catch (error) {
    throw new XentoolError("io", `cannot read ${path}`, { path }, error);
  }
  throw tooLong();
}

async function readBounded(stream: ReadableStream<Uint8Array>): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  let total = 0;
  for await (const piece of stream) {
    pieces.push(piece);
    total += piece.length;
    if (total > FILE_BYTES_MAX) throw tooLong();
  }
  return Buffer.concat(pieces);
}

function tooLong(): XentoolError {
  return new XentoolError("usage", `a ring page is ${PAGE_SIZE} bytes; this is above ${FILE_BYTES_MAX}`);
}

/** A page from raw bytes, or from hexadecimal: plain, or as written by xxd, hexdump -C and od -tx1. */
export function parseRingPage(bytes: Uint8Array): XsRingPage {
  const isText =
    bytes.length > 0 &&
    bytes.every((byte) => byte === 9 || byte === 10 || byte === 13 || (byte >= 32 && byte < 127));
  const found = isText ? parseHex(Buffer.from(bytes).toString("latin1")) : bytes;
  if (found === undefined || found.length < RING_BYTES_MIN || found.length > PAGE_SIZE) {
    const have =
      found === undefined ? "this is neither raw nor hexadecimal" : `this has ${found.length} bytes`;
    throw new XentoolError("usage", `a ring page has ${RING_BYTES_MIN} to ${PAGE_SIZE} bytes; ${have}`);
  }
  const buffer = new ArrayBuffer(PAGE_SIZE);
  const page = { bytes: new Uint8Array(buffer), words: new Uint32Array(buffer) };
  page.bytes.set(found);
  return page;
}

/** A line of a dump: bytes, and their offset if the line has one. */
interface HexLine {
  readonly offset: number | undefined;
  readonly bytes: Uint8Array;
}

/** The page in a dump. A line `*` stands for repetitions of the previous line. */
function parseHex(text: string): Uint8Array | undefined {
  const page = new Uint8Array(PAGE_SIZE);
  let end = 0;
  let row: Uint8Array = new Uint8Array(0);
  let repeats = false;
  for (const line of text.split(/\r?\n/).map((each) => each.trim())) {
    if (line === "") continue;
    if (line === "*") {
      repeats = true;
      continue;
    }
    const { offset, bytes } = parseHexLine(line) ?? { offset: Infinity, bytes: row };
    const at = offset ?? end;
    if (at < end || at + bytes.length > PAGE_SIZE) return undefined;
    if (repeats && row.length > 0)
      for (let fill = end; fill < at; fill += row.length) page.set(row.subarray(0, at - fill), fill);
    repeats = false;
    page.set(bytes, at);
    end = at + bytes.length;
    row = bytes;
  }
  return page.subarray(0, end);
}

/** A line of `xxd`, `hexdump -C`, `od -A x -t x1`, or of bare digits. Undefined: none of these. */
function parseHexLine(line: string): HexLine | undefined {
  const xxd = /^([0-9a-f]{1,16}): (.*)$/i.exec(line);
  if (xxd !== null) return hexLine(xxd[1], xxd[2].split("  ")[0]?.split(" ") ?? []);
  const words = line.replace(/\s*\|.*\|$/, "").split(/\s+/);
  const [first = "", ...others] = words;
  const isOffset = first.length >= 6 && first.length <= 8 && others.every((word) => word.length === 2);
  return isOffset ? hexLine(first, others) : hexLine(undefined, words);
}

function hexLine(offset: string | undefined, words: readonly string[]): HexLine | undefined {
  const digits = words.join("");
  if (!/^(?:[0-9a-f]{2})*$/i.test(digits) || !/^[0-9a-f]*$/i.test(offset ?? "")) return undefined;
  return {
    offset: offset === undefined ? undefined : Number.parseInt(offset, 16),
    bytes: new Uint8Array(Buffer.from(digits, "hex")),
  };
}
