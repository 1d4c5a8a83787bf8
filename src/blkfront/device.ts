// What a frontend shares with its backend: for each queue ring pages and an event channel, and the pool of data pages.
// It is created in the thread that uses it; only numbers leave that thread, for xenstore.
import type { Domid, EvtchnPort, GrantRef } from "../core/types.ts";
import type { EventChannels, Platform } from "../platform/platform.ts";
import type { BlkifAbi } from "../protocol/blkif.ts";
import { FrontRing } from "./front-ring.ts";
import { GrantedPool } from "./granted-pool.ts";

export interface FrontDeviceOptions {
  readonly backend: Domid;
  readonly abi: BlkifAbi;
  readonly queues: number;
  /** Each ring has 2^order pages. */
  readonly ringPageOrder: number;
  readonly poolPages: number;
}

/** What the backend needs to know of a ring. Structured-cloneable. */
export interface RingAddress {
  readonly refs: readonly GrantRef[];
  readonly port: EvtchnPort;
}

/** A ring of ours, and where the backend finds it. */
export interface SharedRing extends RingAddress {
  readonly ring: FrontRing;
}

export class FrontDevice {
  /** By queue. */
  readonly rings: readonly SharedRing[];
  readonly pool: GrantedPool;
  readonly channels: EventChannels;
  readonly #cleanup: DisposableStack;

  private constructor(
    rings: readonly SharedRing[],
    pool: GrantedPool,
    channels: EventChannels,
    cleanup: DisposableStack,
  ) {
    this.rings = rings;
    this.pool = pool;
    this.channels = channels;
    this.#cleanup = cleanup;
  }

  /** What the backend needs to know of each ring. */
  get addresses(): RingAddress[] {
    return this.rings.map(({ refs, port }) => ({ refs, port }));
  }

  /** Slots of all rings together. */
  get slots(): number {
    return this.rings.reduce((sum, { ring }) => sum + ring.slots, 0);
  }

  /** Shares everything with the backend, which may access it as soon as it knows the numbers. */
  static open(platform: Platform, options: FrontDeviceOptions): FrontDevice {
    const { backend, abi } = options;
    using cleanup = new DisposableStack();
    const channels = cleanup.adopt(platform.openEventChannels(), (it) => it.close());
    channels.restrict(backend);
    const share = cleanup.adopt(platform.openGrantShare(), (it) => it.close());
    const rings = Array.from({ length: options.queues }, (): SharedRing => {
      const port = channels.bindUnbound(backend);
      const { refs, mapping } = share.share(backend, 1 << options.ringPageOrder, "rw");
      cleanup.use(mapping);
      return { refs, port, ring: cleanup.adopt(new FrontRing(mapping, abi), (it) => it.close()) };
    });
    const pool = cleanup.adopt(GrantedPool.share(share, backend, options.poolPages), (it) => it.close());
    return new FrontDevice(rings, pool, channels, cleanup.move());
  }

  /** Ends the grants. The backend keeps the pages that it still maps until it lets go of them. */
  close(): void {
    this.#cleanup.dispose();
  }
}
