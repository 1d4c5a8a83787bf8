// Notices that the peer's domain is gone. A process that dies is noticed through the unmap-notify, but the
// kernel of a destroyed domain does not run any more, and Xen itself sends no event when a port closes. Who may
// asks xenstored about domains. Others ask Xen, or, where that does not help, see the peer's keys go.
import { moduleLogger } from "../core/log.ts";
import { describeError } from "../core/errors.ts";
import type { Domid, EvtchnPort } from "../core/types.ts";
import type { EventChannels, Platform } from "../platform/platform.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { errnoOf } from "../xenstore/errors.ts";
import { watchDomain } from "./domain-watch.ts";
import { areKeys, readKeys, watchKeys, type VchanKeys, type VchanPlace } from "./rendezvous.ts";
import type { VchanRole } from "./endpoint.ts";

/** Between two questions to Xen: a dying domain takes a while to be gone. */
const PROBE_INTERVAL_MS = 1500;
/** No domain can be bound to here: the answer tells whether the domain exists. */
const NO_PORT = 0 as EvtchnPort;
/** Keys that a server does not need any more once connected it removes sooner than this, or not at all. */
const KEYS_STAY_MS = 5000;
/** A server that closes may remove its keys first, and then has so long to say that it closed. */
const CLOSING_MS = 1000;

const log = moduleLogger("vchan");

export interface PeerWatchOptions {
  readonly platform: Platform;
  readonly xenstore: Xenstore;
  readonly place: VchanPlace;
  readonly role: VchanRole;
  /** Those that the two ends have met by. */
  readonly keys: VchanKeys;
  /** Whether the server is known to leave its keys in xenstore until it closes. */
  readonly keepsKeys: boolean;
  /** An end that knows by then that its peer has closed in order can ignore it. */
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

  /** Watches until `stop`; runs `onGone` once when the peer's domain is found to be gone. */
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

  /** Only a domain that is gone is unknown: a server maps nothing of its client's, which would keep it known. */
  #askXen(): void {
    this.#timer = setInterval(() => {
      let channels: EventChannels | undefined;
      try {
        channels = this.#options.platform.openEventChannels();
        channels.unbind(channels.bindInterdomain(this.#peer, NO_PORT));
      } catch (error) {
        if (errnoOf(error) === "ESRCH") this.#declareGone();
      } finally {
        channels?.close();
      }
    }, PROBE_INTERVAL_MS);
  }

  /**
   * The pages that a client has mapped keep a dead domain known to Xen, but what the domain has in xenstore is
   * removed with it. Keys that are not those of our server, or not there any more, tell nothing.
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
    // While it began we may have been stopped.
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

/** Without xenstored nothing is learnt of the domain any more; the vchan itself goes on. */
function ignoreLoss(error: unknown): void {
  log.debug(`cannot look after the peer's domain: ${describeError(error)}`);
}
