// Notices that the peer's domain is gone. A process that dies is noticed through the unmap-notify, but the
// kernel of a destroyed domain does not run any more, and Xen itself sends no event when a port closes.
import { moduleLogger } from "../core/log.ts";
import { describeError } from "../core/errors.ts";
import type { Domid, EvtchnPort } from "../core/types.ts";
import type { Platform } from "../platform/platform.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { errnoOf } from "../xenstore/errors.ts";
import type { VchanKeys, VchanPlace } from "./rendezvous.ts";
import type { VchanRole } from "./endpoint.ts";

/** Only for who may not ask xenstored about domains: a dying domain takes a while to be gone. */
const PROBE_INTERVAL_MS = 1500;
/** No domain can be bound to here: the answer tells whether the domain exists. */
const NO_PORT = 0 as EvtchnPort;

const log = moduleLogger("vchan");

export interface PeerWatchOptions {
  readonly platform: Platform;
  readonly xenstore: Xenstore;
  readonly place: VchanPlace;
  readonly role: VchanRole;
  readonly keys: VchanKeys;
  readonly onGone: () => void;
}

export class PeerWatch {
  readonly #options: PeerWatchOptions;
  #timer: ReturnType<typeof setInterval> | undefined;
  #unwatch: (() => Promise<void>) | undefined;
  #stopped = false;

  private constructor(options: PeerWatchOptions) {
    this.#options = options;
  }

  /** Watches until `stop`; runs `onGone` once when the peer's domain is found to be gone. */
  static async start(options: PeerWatchOptions): Promise<PeerWatch> {
    const watch = new PeerWatch(options);
    const look = (): Promise<void> => watch.#look();
    try {
      watch.#unwatch = await options.xenstore.watch("@releaseDomain", look);
    } catch (error) {
      log.debug(`no watch on @releaseDomain: ${describeError(error)}`);
      await look();
    }
    return watch;
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    clearInterval(this.#timer);
    await this.#unwatch?.().catch(() => {});
  }

  async #look(): Promise<void> {
    if (this.#stopped) return;
    if (!(await this.#isGone()) || this.#stopped) return;
    this.#stopped = true;
    clearInterval(this.#timer);
    this.#options.onGone();
  }

  async #isGone(): Promise<boolean> {
    try {
      return !(await this.#options.xenstore.isDomainIntroduced(this.#peer));
    } catch (error) {
      if (this.#stopped) return false;
      if (errnoOf(error) !== "EACCES") throw error;
      this.#timer ??= setInterval(() => this.#look().catch(ignoreLoss), PROBE_INTERVAL_MS);
      return this.#probe();
    }
  }

  get #peer(): Domid {
    const { place, role } = this.#options;
    return role === "server" ? place.client : place.server;
  }

  /**
   * A server asks for an event channel that cannot be had: only a domain that is gone is unknown. For a
   * client the pages it has mapped keep a dead domain known; but no further page of it can be mapped.
   */
  #probe(): boolean {
    const { platform, role, keys } = this.#options;
    const peer = this.#peer;
    if (role === "server") {
      const channels = platform.openEventChannels();
      try {
        channels.unbind(channels.bindInterdomain(peer, NO_PORT));
      } catch (error) {
        return errnoOf(error) === "ESRCH";
      } finally {
        channels.close();
      }
      return false;
    }
    const table = platform.openGrantTable();
    try {
      table.map(peer, [keys.ringRef], "r").close();
      return false;
    } catch {
      return true;
    } finally {
      table.close();
    }
  }
}

/** Without xenstored nothing is learnt of the domain any more; the vchan itself goes on. */
function ignoreLoss(error: unknown): void {
  log.debug(`cannot look after the peer's domain: ${describeError(error)}`);
}
