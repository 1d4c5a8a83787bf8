// Notices that the peer's domain is gone. The unmap-notify reports a process that dies, but the kernel of a destroyed
// domain no longer runs, and Xen itself sends no event when a port closes. An end that may ask xenstored about
// domains does. Others ask Xen, or, where that does not help, watch for the peer's keys to disappear.
import { moduleLogger } from "../core/log.ts";
import { describeError } from "../core/errors.ts";
import type { Domid } from "../core/types.ts";
import { isDomainUnknown } from "../platform/domains.ts";
import type { Platform } from "../platform/platform.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { watchDomain } from "../xenstore/domains.ts";
import { CLOSING_MS, KEYS_STAY_MS, PROBE_INTERVAL_MS } from "./bounds.ts";
import { areKeys, readKeys, watchKeys, type VchanKeys, type VchanPlace } from "./rendezvous.ts";
import type { VchanRole } from "./endpoint.ts";

const log = moduleLogger("vchan");

export interface PeerWatchOptions {
  readonly platform: Platform;
  readonly xenstore: Xenstore;
  readonly place: VchanPlace;
  readonly role: VchanRole;
  /** The keys that the two ends met by. */
  readonly keys: VchanKeys;
  /** Whether the server is known to leave its keys in xenstore until it closes. */
  readonly keepsKeys: boolean;
  /** May be ignored by an end that already knows that its peer closed in order. */
  readonly onGone: () => void;
}

export class PeerWatch {
  readonly #options: PeerWatchOptions;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #unwatch: (() => unknown) | undefined;
  #stopped = false;

  private constructor(options: PeerWatchOptions) {
    this.#options = options;
  }

  /** Watches until `stop`. Runs `onGone` once when the peer's domain is found to be gone. */
  static async start(options: PeerWatchOptions): Promise<PeerWatch> {
    const watch = new PeerWatch(options);
    watch.#unwatch = await watchDomain(options.xenstore, watch.#peer, () => watch.#declareGone());
    if (watch.#unwatch !== undefined) return watch;
    if (options.role === "server") watch.#askXen();
    else if (options.keepsKeys) await watch.#followKeys();
    else watch.#timer = setTimeout(() => watch.#followKeys().catch(ignoreLoss), KEYS_STAY_MS);
    return watch;
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#endWatch().catch(() => {});
  }

  get #peer(): Domid {
    const { place, role } = this.#options;
    return role === "server" ? place.client : place.server;
  }

  /**
   * Asks Xen, which reports only a domain that is gone as unknown. A server maps no pages of its client, which would
   * keep a dead client known.
   */
  #askXen(): void {
    this.#timer = setInterval(() => {
      if (isDomainUnknown(this.#options.platform, this.#peer)) this.#declareGone();
    }, PROBE_INTERVAL_MS);
  }

  /**
   * A client's mapped pages keep a dead domain known to Xen, but xenstore removes a domain's keys together with the
   * domain. Keys that are not our server's, or are gone already, prove nothing.
   */
  async #followKeys(): Promise<void> {
    const { xenstore, place, keys, keepsKeys } = this.#options;
    let ours = keepsKeys;
    const unwatch = await watchKeys(xenstore, place, async () => {
      const found = await readKeys(xenstore, place);
      if (found === undefined && ours) this.#timer = setTimeout(() => this.#declareGone(), CLOSING_MS);
      ours = areKeys(found, keys);
    });
    this.#unwatch = unwatch;
    // We may have been stopped while the watch was starting.
    if (this.#stopped) await this.#endWatch();
  }

  async #endWatch(): Promise<void> {
    const unwatch = this.#unwatch;
    this.#unwatch = undefined;
    await unwatch?.();
  }

  #declareGone(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#options.onGone();
  }
}

/** Without xenstored we learn nothing more about the domain, but the vchan itself goes on. */
function ignoreLoss(error: unknown): void {
  log.debug(`cannot look after the peer's domain: ${describeError(error)}`);
}
