// A client over a xenstore ring page: the guest's side. A predecessor (a boot loader, a crashed kernel) may have left
// the ring in use, so it is first brought to a packet boundary. If the server supports the close handshake, that is
// used; otherwise the client does as Linux does: it waits until the requests are taken and skips the replies.
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
import { XS_PAYLOAD_MAX } from "../../protocol/xs-wire.ts";
import type { XenstoreTransport } from "../transport.ts";

const ignore = (): void => {};

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
    if (bytes === undefined || loadRingWord(this.#ring.page, XS_RING_ERROR) !== XENSTORE_ERROR_NONE)
      this.#lose();
    if (bytes === undefined || bytes.length === 0) return false;
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

/** Brings a ring that was used before to a packet boundary. */
async function clear(ring: StoreRing, timeoutMs: number): Promise<void> {
  const { page } = ring;
  const canClose = (loadRingWord(page, XS_RING_SERVER_FEATURES) & XENSTORE_SERVER_FEATURE_RECONNECTION) !== 0;
  if (canClose) storeRingWord(page, XS_RING_CONNECTION, XENSTORE_RECONNECT);
  ring.events.notify(ring.port);
  await until(ring, timeoutMs, () => (canClose ? isConnected(page) : requestsTaken(page)));
  if (!canClose) XsRingStream.responses(page).skip();
}

function isConnected(page: XsRingPage): boolean {
  return loadRingWord(page, XS_RING_CONNECTION) === XENSTORE_CONNECTED;
}

function requestsTaken(page: XsRingPage): boolean {
  return loadRingWord(page, XS_RING_REQ_CONS) === loadRingWord(page, XS_RING_REQ_PROD);
}

/** Whether nothing was sent since the ring was set up or closed. A used ring may hold an incomplete packet. */
function isFresh(page: XsRingPage): boolean {
  const indices = [XS_RING_REQ_CONS, XS_RING_REQ_PROD, XS_RING_RSP_CONS, XS_RING_RSP_PROD];
  return isConnected(page) && indices.every((offset) => loadRingWord(page, offset) === 0);
}

/** Waits for `condition`, which is checked after each event. */
async function until(ring: StoreRing, timeoutMs: number, condition: () => boolean): Promise<void> {
  if (condition()) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  const stopEvents = ring.onEvent(() => {
    if (condition()) resolve();
  });
  const late = `xenstored did not answer on its ring within ${timeoutMs} ms`;
  try {
    await within(timeoutMs, promise, () => new XentoolError("timeout", late));
  } finally {
    stopEvents();
  }
}
