// A xenstore ring between a guest and the server within one process: a page of ordinary memory and two
// ports whose events arrive in a later turn, as real ones do.
import type { EvtchnPort } from "../../src/core/types.ts";
import type { XsRingPage } from "../../src/protocol/xs-ring.ts";
import type { StoreRing } from "../../src/platform/platform.ts";
import type { RingChannel, Ring } from "../../src/xenstore/server/ring-channel.ts";

export class TestRing {
  readonly page: XsRingPage;
  /** Events sent to the guest. */
  guestEvents = 0;
  serverClosed = false;
  channel: RingChannel | undefined;
  readonly #listeners = new Set<() => void>();

  constructor() {
    const buffer = new ArrayBuffer(4096);
    this.page = { bytes: new Uint8Array(buffer), words: new Uint32Array(buffer) };
  }

  /** The server's end; `port` is also the guest's. */
  server(gfn = 1, port = 2): Ring {
    const notify = (): number => {
      this.guestEvents++;
      queueMicrotask(() => {
        for (const listener of this.#listeners) listener();
      });
      return 0;
    };
    const close = (): void => {
      this.serverClosed = true;
    };
    return { page: this.page, events: { notify }, port: 1 as EvtchnPort, gfn, remotePort: port, close };
  }

  /** The guest's end. */
  client(): StoreRing {
    return {
      page: this.page,
      events: { notify: () => this.kick() },
      port: 2 as EvtchnPort,
      onEvent: (wake) => {
        this.#listeners.add(wake);
        return () => this.#listeners.delete(wake);
      },
    };
  }

  /** Sends the server an event. */
  kick(): number {
    queueMicrotask(() => this.channel?.pump());
    return 0;
  }

  get listeners(): number {
    return this.#listeners.size;
  }
}
