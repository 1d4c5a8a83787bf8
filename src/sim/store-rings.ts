// The xenstore rings of a simulated host's domains, from the server's side: pages mapped and ports bound as domain 0,
// and one event stream that wakes the server for the ring that was signalled.
import { describeError } from "../core/errors.ts";
import { moduleLogger } from "../core/log.ts";
import { toDomid, type EvtchnPort } from "../core/types.ts";
import { XT_SIM_STORE_GREF } from "../native/abi.ts";
import type { EventChannels, GrantTable, Platform } from "../platform/platform.ts";
import { PortStream } from "../platform/port-stream.ts";
import type { Ring } from "../xenstore/server/ring-channel.ts";

const log = moduleLogger("sim");

/** A ring whose port can be released before the ring, because a new ring for the same domain needs the port. */
interface OpenRing extends Ring {
  releasePort(): void;
}

export interface StoreRingHandlers {
  /** The ring of this domain needs attention. */
  event(domid: number): void;
  /** We could not send an event for lack of a descriptor; it is still pending. */
  undelivered(): void;
}

export class StoreRings {
  readonly #events: EventChannels;
  readonly #grants: GrantTable;
  readonly #open = new Map<number, OpenRing>();
  readonly #domidOfPort = new Map<number, number>();
  readonly #ports: PortStream;
  readonly #handlers: StoreRingHandlers;

  /** Opens rings through `platform`, which is domain 0. */
  constructor(platform: Platform, handlers: StoreRingHandlers) {
    this.#events = platform.openEventChannels();
    this.#grants = platform.openGrantTable();
    this.#handlers = handlers;
    this.#ports = new PortStream(this.#events, (port) => this.#serve(port));
  }

  get count(): number {
    return this.#open.size;
  }

  /** Opens the ring of `domid`, whose own port is `remotePort`. It replaces the one that was open before. */
  open(domid: number, remotePort: number): Ring {
    this.#open.get(domid)?.releasePort();
    using undo = new DisposableStack();
    const mapping = undo.use(this.#grants.map(toDomid(domid), [XT_SIM_STORE_GREF], "rw"));
    const port = this.#events.bindInterdomain(toDomid(domid), remotePort as EvtchnPort);
    undo.move();
    this.#domidOfPort.set(port, domid);
    let bound = true;
    const releasePort = (): void => {
      if (!bound) return; // the next ring may have the same port number
      bound = false;
      this.#domidOfPort.delete(port);
      this.#events.unbind(port);
    };
    const close = (): void => {
      releasePort();
      mapping.close();
      if (this.#open.get(domid) === ring) this.#open.delete(domid);
    };
    const ring: OpenRing = {
      page: mapping,
      events: { notify: (own) => this.#notify(own) },
      port,
      gfn: XT_SIM_STORE_GREF,
      remotePort,
      releasePort,
      close,
    };
    this.#open.set(domid, ring);
    return ring;
  }

  /** Closes everything that is still open. */
  async close(): Promise<void> {
    for (const ring of this.#open.values()) ring.close();
    await this.#ports.close();
    this.#events.close();
    this.#grants.close();
  }

  #notify(port: EvtchnPort): number {
    const result = this.#events.notify(port);
    if (result < 0) this.#handlers.undelivered();
    return result;
  }

  #serve(port: EvtchnPort): void {
    const domid = this.#domidOfPort.get(port);
    if (domid === undefined) return;
    try {
      this.#handlers.event(domid);
    } catch (error) {
      log.error("xenstore ring of domain {domid}: {error}", { domid, error: describeError(error) });
    }
  }
}
