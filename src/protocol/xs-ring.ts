// The xenstore ring: one page with a byte stream in each direction and the control words. Bytes only: who closes a
// ring, and when, is up to its users. Source: public/io/xs_wire.h (MIT), docs/misc/xenstore-ring.txt.

/** The memory of a ring page, as a Mapping exposes it. */
export interface XsRingPage {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly words: Uint32Array<ArrayBuffer>;
}

/** XENSTORE_RING_SIZE: size of each stream in bytes. */
export const XS_RING_BYTES = 1024;
const REQUESTS_AT = 0;
const RESPONSES_AT = XS_RING_BYTES;

/** Fills a closed stream; it reads as packets of type XS_INVALID. */
export const XS_RING_POISON = new Uint8Array([0xff]);

/** Offsets of the page's words. */
export const XS_RING_REQ_CONS = 2048;
export const XS_RING_REQ_PROD = 2052;
export const XS_RING_RSP_CONS = 2056;
export const XS_RING_RSP_PROD = 2060;
export const XS_RING_SERVER_FEATURES = 2064;
export const XS_RING_CONNECTION = 2068;
export const XS_RING_ERROR = 2072;
export const XS_RING_EVTCHN_PORT = 2076;

/** Bits of server_features. */
export const XENSTORE_SERVER_FEATURE_RECONNECTION = 1;
export const XENSTORE_SERVER_FEATURE_ERROR = 2;
export const XENSTORE_SERVER_FEATURE_WATCHDEPTH = 4;
export const XENSTORE_SERVER_FEATURE_DOMID_ANY = 8;

/** Values of the connection word. */
export const XENSTORE_CONNECTED = 0;
export const XENSTORE_RECONNECT = 1;

/** Values of the error word. */
export const XENSTORE_ERROR_NONE = 0;
export const XENSTORE_ERROR_COMM = 1;
export const XENSTORE_ERROR_RINGIDX = 2;
export const XENSTORE_ERROR_PROTO = 3;

/** The word at byte `offset` of a ring page. The other side may change it at any moment. */
export function loadRingWord(page: XsRingPage, offset: number): number {
  return Atomics.load(page.words, offset >> 2);
}

export function storeRingWord(page: XsRingPage, offset: number, value: number): void {
  Atomics.store(page.words, offset >> 2, value);
}

/**
 * One of the two byte streams of a ring page. Both indices are read from the page each time, because a close resets
 * them to zero. An impossible difference is reported, and no copy ever leaves the stream.
 */
export class XsRingStream {
  readonly #page: XsRingPage;
  readonly #dataAt: number;
  readonly #consAt: number;
  readonly #prodAt: number;

  private constructor(page: XsRingPage, dataAt: number, consAt: number, prodAt: number) {
    this.#page = page;
    this.#dataAt = dataAt;
    this.#consAt = consAt;
    this.#prodAt = prodAt;
  }

  /** The guest's stream. */
  static requests(page: XsRingPage): XsRingStream {
    return new XsRingStream(page, REQUESTS_AT, XS_RING_REQ_CONS, XS_RING_REQ_PROD);
  }

  /** The server's stream. */
  static responses(page: XsRingPage): XsRingStream {
    return new XsRingStream(page, RESPONSES_AT, XS_RING_RSP_CONS, XS_RING_RSP_PROD);
  }

  /** Bytes waiting to be read, or undefined if the indices are further apart than the stream is long. */
  get usedBytes(): number | undefined {
    const used = (loadRingWord(this.#page, this.#prodAt) - loadRingWord(this.#page, this.#consAt)) >>> 0;
    return used <= XS_RING_BYTES ? used : undefined;
  }

  /** Reads everything that is waiting; undefined as for `usedBytes`. */
  read(): Uint8Array | undefined {
    const cons = loadRingWord(this.#page, this.#consAt);
    const used = (loadRingWord(this.#page, this.#prodAt) - cons) >>> 0;
    if (used > XS_RING_BYTES) return undefined;
    const bytes = new Uint8Array(used);
    this.#copy(cons, used, (part, at) => bytes.set(part, at));
    if (used > 0) storeRingWord(this.#page, this.#consAt, (cons + used) >>> 0);
    return bytes;
  }

  /** Writes as many bytes as fit and returns how many; undefined as for `usedBytes`. */
  write(bytes: Uint8Array): number | undefined {
    const prod = loadRingWord(this.#page, this.#prodAt);
    const used = (prod - loadRingWord(this.#page, this.#consAt)) >>> 0;
    if (used > XS_RING_BYTES) return undefined;
    const count = Math.min(bytes.length, XS_RING_BYTES - used);
    this.#copy(prod, count, (part, at) => part.set(bytes.subarray(at, at + part.length)));
    if (count > 0) storeRingWord(this.#page, this.#prodAt, (prod + count) >>> 0);
    return count;
  }

  /** Discards what is waiting to be read: the consumer catches up with the producer. */
  skip(): void {
    storeRingWord(this.#page, this.#consAt, loadRingWord(this.#page, this.#prodAt));
  }

  /** Sets both indices to zero and, if given, fills the stream with `poison`. */
  reset(poison?: Uint8Array): void {
    storeRingWord(this.#page, this.#consAt, 0);
    storeRingWord(this.#page, this.#prodAt, 0);
    if (poison !== undefined) this.fill(poison);
  }

  /** Fills the stream with repetitions of `poison`. */
  fill(poison: Uint8Array): void {
    const data = this.#page.bytes.subarray(this.#dataAt, this.#dataAt + XS_RING_BYTES);
    for (let at = 0; at < data.length; at += poison.length) data.set(poison, at);
  }

  /** Passes the one or two pieces of the page that hold `count` bytes from `index` on to `use`. */
  #copy(index: number, count: number, use: (part: Uint8Array, at: number) => void): void {
    const start = index % XS_RING_BYTES;
    const first = Math.min(count, XS_RING_BYTES - start);
    const from = this.#dataAt + start;
    if (first > 0) use(this.#page.bytes.subarray(from, from + first), 0);
    if (count > first) use(this.#page.bytes.subarray(this.#dataAt, this.#dataAt + count - first), first);
  }
}
