// A connection over a ring page, on the server's side. The guest owns half of the page and may write to all of it, so
// nothing in it is trusted: an impossible index or length makes the server ignore the ring for good, as xenstored does.
// `pump` performs the work that an event on the ring's port asks for.
import type { EventChannels } from "../../platform/platform.ts";
import type { EvtchnPort } from "../../core/types.ts";
import {
  loadRingWord,
  storeRingWord,
  XENSTORE_CONNECTED,
  XENSTORE_ERROR_NONE,
  XENSTORE_ERROR_PROTO,
  XENSTORE_ERROR_RINGIDX,
  XENSTORE_RECONNECT,
  XS_RING_CONNECTION,
  XS_RING_ERROR,
  XS_RING_SERVER_FEATURES,
  XsRingStream,
  type XsRingPage,
} from "../../protocol/xs-ring.ts";
import type { Channel, Connection } from "./connection.ts";
import type { Personality } from "./personality.ts";
import { PUMP_ROUNDS } from "../bounds.ts";

/** A ring handed to the server, which owns it from then on. */
export interface Ring {
  readonly page: XsRingPage;
  readonly events: Pick<EventChannels, "notify">;
  /** Our port, which is bound to the guest's. */
  readonly port: EvtchnPort;
  /** The page's guest frame and the guest's own port, as given in INTRODUCE. */
  readonly gfn: number;
  readonly remotePort: number;
  /** Unbinds the port and unmaps the page. */
  close(): void;
}

export class RingChannel implements Channel {
  readonly #personality: Personality;
  #ring: Ring;
  #requests: XsRingStream;
  #responses: XsRingStream;
  #connection: Connection | undefined;
  #scan: ReturnType<typeof setInterval> | undefined;
  #reading = true;
  #pumping = false;
  #ignored = false;
  #closed = false;

  constructor(ring: Ring, personality: Personality, features: number) {
    this.#ring = ring;
    this.#personality = personality;
    this.#requests = XsRingStream.requests(ring.page);
    this.#responses = XsRingStream.responses(ring.page);
    storeRingWord(ring.page, XS_RING_SERVER_FEATURES, features);
    if (personality.ringScanMs !== undefined)
      this.#scan = setInterval(() => this.pump(), personality.ringScanMs).unref();
  }

  get ring(): Ring {
    return this.#ring;
  }

  /** Whether the server ignores this ring because of a violation. */
  get ignored(): boolean {
    return this.#ignored;
  }

  /** Serves `connection` from now on, beginning with what is already in the ring. */
  attach(connection: Connection): void {
    this.#connection = connection;
    this.pump();
  }

  /** Does everything that can be done now. Call it for each event on the ring's port. */
  pump(): void {
    const connection = this.#connection;
    if (connection === undefined || this.#ignored || this.#closed || this.#pumping) return;
    this.#pumping = true;
    this.#answerClose();
    connection.writable();
    let rounds = 0;
    while (this.#reading && this.#readInto(connection)) {
      this.#answerClose();
      if (++rounds === PUMP_ROUNDS) {
        setImmediate(() => this.pump());
        break;
      }
    }
    this.#pumping = false;
  }

  write(bytes: Uint8Array): number {
    if (this.#ignored || this.#closed || this.#answerClose()) return bytes.length;
    const count = this.#responses.write(bytes);
    if (count === undefined) {
      this.#ignore(XENSTORE_ERROR_RINGIDX);
      return bytes.length;
    }
    if (count > 0) this.#notify();
    return count;
  }

  setReading(wanted: boolean): void {
    const resumed = wanted && !this.#reading;
    this.#reading = wanted;
    if (resumed) this.pump();
  }

  violation(): void {
    this.#ignore(XENSTORE_ERROR_PROTO);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#scan);
    this.#ring.close();
  }

  /**
   * INTRODUCE for a domain that already has this ring, on servers where that restarts it: C xenstored takes the new
   * port, forgets the connection's state, zeroes the indices and completes a close that the guest is waiting for.
   */
  restart(ring: Ring): void {
    this.#ring.close();
    this.#ring = ring;
    this.#requests = XsRingStream.requests(ring.page);
    this.#responses = XsRingStream.responses(ring.page);
    this.#startAnew(undefined);
    this.pump();
  }

  /** Returns false if there is nothing to read. */
  #readInto(connection: Connection): boolean {
    const bytes = this.#requests.read();
    if (bytes === undefined) this.#ignore(XENSTORE_ERROR_RINGIDX);
    if (bytes === undefined || bytes.length === 0) return false;
    this.#notify();
    connection.receive(bytes);
    return !this.#ignored && !this.#closed;
  }

  /**
   * Performs the close that the guest requests, if the server supports it; checked at each read and each write. Returns
   * true if there was a request.
   */
  #answerClose(): boolean {
    const poison = this.#personality.ringPoison;
    if (this.#ignored || this.#closed || poison === undefined) return false;
    if (loadRingWord(this.#ring.page, XS_RING_CONNECTION) === XENSTORE_CONNECTED) return false;
    this.#startAnew(poison);
    return true;
  }

  /** The flag is cleared last, because it tells the guest that everything else is done. */
  #startAnew(poison: Uint8Array | undefined): void {
    this.#connection?.reset();
    this.#reading = true;
    this.#requests.reset(poison);
    this.#responses.reset(poison);
    const { page } = this.#ring;
    if (loadRingWord(page, XS_RING_CONNECTION) !== XENSTORE_RECONNECT && poison === undefined) return;
    storeRingWord(page, XS_RING_CONNECTION, XENSTORE_CONNECTED);
    this.#notify();
  }

  #ignore(error: number): void {
    if (this.#ignored) return;
    this.#ignored = true;
    this.#connection?.reset();
    const { page } = this.#ring;
    if (!this.#personality.writesErrorWord || loadRingWord(page, XS_RING_ERROR) !== XENSTORE_ERROR_NONE)
      return;
    storeRingWord(page, XS_RING_ERROR, error);
    this.#notify();
  }

  #notify(): void {
    this.#ring.events.notify(this.#ring.port);
  }
}
