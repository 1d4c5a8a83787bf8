// What a frontend shares with its backend: ring pages, an event channel, and the pool of data pages. It is created in
// the thread that uses it; only numbers leave that thread, for xenstore.
import type { Domid, EvtchnPort, GrantRef } from "../core/types.ts";
import type { EventChannels, Platform } from "../platform/platform.ts";
import type { BlkifAbi } from "../protocol/blkif.ts";
import { FrontRing } from "./front-ring.ts";
import { GrantedPool } from "./granted-pool.ts";

export interface FrontDeviceOptions {
  readonly backend: Domid;
  readonly abi: BlkifAbi;
  /** The ring has 2^order pages. */
  readonly ringPageOrder: number;
  readonly poolPages: number;
}

/** What the backend needs to know. Structured-cloneable. */
export interface RingAddress {
  readonly refs: readonly GrantRef[];
  readonly port: EvtchnPort;
}

export class FrontDevice {
  readonly ring: FrontRing;
  readonly pool: GrantedPool;
  readonly channels: EventChannels;
  readonly address: RingAddress;
  readonly #cleanup: DisposableStack;

  private constructor(
    ring: FrontRing,
    pool: GrantedPool,
    channels: EventChannels,
    address: RingAddress,
    cleanup: DisposableStack,
  ) {
    this.ring = ring;
    this.pool = pool;
    this.channels = channels;
    this.address = address;
    this.#cleanup = cleanup;
  }

  /** Shares everything with the backend, which may access it as soon as it knows the numbers. */
  static open(platform: Platform, options: FrontDeviceOptions): FrontDevice {
    const { backend, abi } = options;
    using cleanup = new DisposableStack();
    const channels = cleanup.adopt(platform.openEventChannels(), (it) => it.close());
    channels.restrict(backend);
    const port = channels.bindUnbound(backend);
    const share = cleanup.adopt(platform.openGrantShare(), (it) => it.close());
    const pages = share.share(backend, 1 << options.ringPageOrder, "rw");
    cleanup.use(pages.mapping);
    const ring = cleanup.adopt(new FrontRing(pages.mapping, abi), (it) => it.close());
    const pool = cleanup.adopt(GrantedPool.share(share, backend, options.poolPages), (it) => it.close());
    return new FrontDevice(ring, pool, channels, { refs: pages.refs, port }, cleanup.move());
  }

  /** Ends the grants. The backend keeps the pages that it still maps until it lets go of them. */
  close(): void {
    this.#cleanup.dispose();
  }
}
