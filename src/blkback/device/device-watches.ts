// What the server of a device listens to in xenstore while it serves it.
import type { XentoolError } from "../../core/errors.ts";
import type { Unwatch, Xenstore } from "../../xenstore/client.ts";
import { backendDir, frontendDir, type DeviceAddress } from "../address.ts";
import { watchOffers } from "./ring-offers.ts";

export interface DeviceListener {
  /** The frontend has offered a ring. */
  readonly onOffer: () => void;
  readonly onChange: () => Promise<void>;
  /** There is no xenstored any more. */
  readonly onLost: (error: XentoolError) => void;
}

export class DeviceWatches {
  readonly #unwatch: Unwatch[] = [];

  /** When it throws, `close` ends what was begun. */
  async open(xenstore: Xenstore, address: DeviceAddress, listener: DeviceListener): Promise<void> {
    const forget = xenstore.onClose(listener.onLost);
    this.#unwatch.push(async () => forget());
    const paths = [backendDir(address), `${frontendDir(address)}/state`, "@releaseDomain"];
    const watching = await Promise.allSettled([
      // The first, because nobody may learn of a state whose offer is not known yet.
      watchOffers(xenstore, address, listener.onOffer),
      ...paths.map((path) => xenstore.watch(path, listener.onChange)),
    ]);
    for (const it of watching) if (it.status === "fulfilled") this.#unwatch.push(it.value);
    for (const it of watching) if (it.status === "rejected") throw it.reason;
  }

  /** A second time, it does nothing. */
  async close(): Promise<void> {
    await Promise.allSettled(this.#unwatch.splice(0).map((unwatch) => unwatch()));
  }
}
