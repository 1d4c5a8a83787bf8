// A client over a xenstore ring page: the guest's side. A predecessor (a boot loader, a crashed kernel) may have left
// the ring in use, so it is first brought to a packet boundary. If the server supports the close handshake, that is
// used; otherwise the client does as Linux does: it skips the replies, and has the server forget the watches.
import { within } from "../../core/deadline.ts";
import { XentoolError } from "../../core/errors.ts";
import type { StoreRing } from "../../platform/platform.ts";
import {
  loadRingWord,
  storeRingWord,
  XENSTORE_CONNECTED,
  XENSTORE_ERROR_NONE,
  XENSTORE_RECONNECT,
  XENSTORE_SERVER_FEATURE_RECONNECTION,
  XS_RING_CONNECTION,
  XS_RING_ERROR,
  XS_RING_REQ_CONS,
  XS_RING_REQ_PROD,
  XS_RING_RSP_CONS,
  XS_RING_RSP_PROD,
  XS_RING_SERVER_FEATURES,
  XsRingStream,
  type XsRingPage,
} from "../../protocol/xs-ring.ts";
import { readHeader } from "../../protocol/xs-content.ts";
import {
  encodePacket,
  encodeStrings,
  XS_ERROR,
  XS_HEADER_BYTES,
  XS_PAYLOAD_MAX,
  XS_RESET_WATCHES,
} from "../../protocol/xs-wire.ts";
import type { XenstoreTransport } from "../transport.ts";

const ignore = (): void => {};

/** A header and the name of any errno fit. */
const SHORT_REPLY_BYTES = 64;

export class RingTransport implements XenstoreTransport {
  readonly name = "the xenstore ring";
  readonly payloadBytesMax = XS_PAYLOAD_MAX;
  onData: (bytes: Uint8Array) => void = ignore;
  onClose: (error: XentoolError) => void = ignore;
  readonly #ring: StoreRing;
  readonly #requests: XsRingStream;
  readonly #responses: XsRingStream;
  readonly #stopEvents: () => void;
  #unsent: Uint8Array[] = [];
  #closed = false;

  private constructor(ring: StoreRing) {
    this.#ring = ring;
    this.#requests = XsRingStream.requests(ring.page);
    this.#responses = XsRingStream.responses(ring.page);
    this.#stopEvents = ring.onEvent(() => this.#pump());
  }

  /**
   * Takes over the ring within `timeoutMs`; fails with `timeout` if the server does not respond. The ring is closed if
   * this fails, and otherwise together with the transport.
   */
  static async connect(ring: StoreRing, timeoutMs: number): Promise<RingTransport> {
    try {
      if (!isFresh(ring.page)) await clear(ring, timeoutMs);
      return new RingTransport(ring);
    } catch (error) {
      ring.close?.();
      throw error;
    }
  }

  write(packet: Uint8Array): void {
    if (this.#closed) return;
    this.#unsent.push(packet);
    if (this.#unsent.length === 1) this.#pump();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#unsent = [];
    this.#stopEvents();
    this.#ring.close?.();
  }

  /** Receives what the server sent and sends what fits, until neither makes progress. */
  #pump(): void {
    while (!this.#closed && (this.#send() || this.#receive()));
  }

  /** Returns true if something was sent. */
  #send(): boolean {
    const head = this.#unsent[0];
    if (head === undefined) return false;
    const count = this.#requests.write(head);
    if (count === undefined) this.#lose();
    if (count === undefined || count === 0) return false;
    if (count === head.length) this.#unsent.shift();
    else this.#unsent[0] = head.subarray(count);
    this.#ring.events.notify(this.#ring.port);
    return true;
  }

  /** Returns true if something was received. */
  #receive(): boolean {
    const bytes = this.#responses.read();
    if (bytes === undefined || loadRingWord(this.#ring.page, XS_RING_ERROR) !== XENSTORE_ERROR_NONE) {
      this.#lose();
      return false;
    }
    if (bytes.length === 0) return false;
    this.#ring.events.notify(this.#ring.port);
    this.onData(bytes);
    return true;
  }

  #lose(): void {
    if (this.#closed) return;
    const error = loadRingWord(this.#ring.page, XS_RING_ERROR);
    const reason =
      error === XENSTORE_ERROR_NONE ? "its indices are impossible" : `xenstored reports error ${error}`;
    this.close();
    this.onClose(new XentoolError("protocol", `the xenstore ring is broken: ${reason}`, { error }));
  }
}

/** Brings a ring that was used before to a packet boundary, and the server to forget who used it. */
async function clear(ring: StoreRing, timeoutMs: number): Promise<void> {
  const { page } = ring;
  const canClose = (loadRingWord(page, XS_RING_SERVER_FEATURES) & XENSTORE_SERVER_FEATURE_RECONNECTION) !== 0;
  if (!canClose) return until(ring, timeoutMs, resetOf(ring));
  storeRingWord(page, XS_RING_CONNECTION, XENSTORE_RECONNECT);
  ring.events.notify(ring.port);
  await until(ring, timeoutMs, () => isConnected(page));
}

/**
 * Has the server end the watches and transactions of the ring's last user. Returns a function that goes on with it
 * whenever it is called, and returns true once that is done. The server may be writing to that user still, and may have
 * stopped in the middle of a reply, so everything is skipped up to the reply to this request, known by its random id.
 */
function resetOf(ring: StoreRing): () => boolean {
  const requests = XsRingStream.requests(ring.page);
  const responses = XsRingStream.responses(ring.page);
  const [id] = crypto.getRandomValues(new Uint32Array(1));
  let unsent = encodePacket(XS_RESET_WATCHES, id, 0, encodeStrings(""));
  let last: Uint8Array = new Uint8Array(0);
  return () => {
    for (;;) {
      const sent = requests.write(unsent);
      const bytes = responses.read();
      if (sent === undefined || bytes === undefined)
        throw new XentoolError("protocol", "the xenstore ring is broken: its indices are impossible");
      if (sent === 0 && bytes.length === 0) return false;
      ring.events.notify(ring.port);
      unsent = unsent.subarray(sent);
      last = Buffer.concat([last, bytes]);
      if (holdsReply(last, id)) return true;
      last = last.subarray(-SHORT_REPLY_BYTES);
    }
  };
}

/** Whether somewhere in `bytes` there is the whole reply to a RESET_WATCHES: OK or an error. */
function holdsReply(bytes: Uint8Array, id: number): boolean {
  for (let at = 0; at + XS_HEADER_BYTES <= bytes.length; at++) {
    const header = readHeader(bytes, at);
    if (header?.reqId !== id || header.txId !== 0) continue;
    const isReply = header.type === XS_RESET_WATCHES || header.type === XS_ERROR;
    if (isReply && at + XS_HEADER_BYTES + header.length <= bytes.length) return true;
  }
  return false;
}

function isConnected(page: XsRingPage): boolean {
  return loadRingWord(page, XS_RING_CONNECTION) === XENSTORE_CONNECTED;
}

/** Whether nothing was sent since the ring was set up or closed. A used ring may hold an incomplete packet. */
function isFresh(page: XsRingPage): boolean {
  const indices = [XS_RING_REQ_CONS, XS_RING_REQ_PROD, XS_RING_RSP_CONS, XS_RING_RSP_PROD];
  return isConnected(page) && indices.every((offset) => loadRingWord(page, offset) === 0);
}

/** Waits for `condition`, which is checked after each event, and may throw. */
async function until(ring: StoreRing, timeoutMs: number, condition: () => boolean): Promise<void> {
  if (condition()) return;
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const stopEvents = ring.onEvent(() => {
    try {
      if (condition()) resolve();
    } catch (error) {
      reject(error);
    }
  });
  const late = `xenstored did not answer on its ring within ${timeoutMs} ms`;
  try {
    await within(timeoutMs, promise, () => new XentoolError("timeout", late));
  } finally {
    stopEvents();
  }
}
