// A vchan from its rendezvous to its end, for any number of peers: the control plane of `xentool vchan`. It is
// asynchronous and always responsive; a worker moves the bytes.
import { endsWithin, onAbort } from "../core/deadline.ts";
import { XentoolError, type ErrorContext } from "../core/errors.ts";
import type { Domid } from "../core/types.ts";
import { Plane, type SpawnWorker } from "../plane/plane.ts";
import { noDomain } from "../platform/domains.ts";
import type { Platform } from "../platform/platform.ts";
import type { VchanOrders } from "../protocol/vchan.ts";
import { Xenstore } from "../xenstore/client.ts";
import { RETRY_MS, TURN_MS } from "./bounds.ts";
import { BETWEEN_CLIENTS, NO_SERVER, SERVER_BUSY } from "./client.ts";
import { domainExists } from "../xenstore/domains.ts";
import type { VchanRole } from "./endpoint.ts";
import { PeerWatch, type PeerWatchOptions } from "./peer-watch.ts";
import {
  areKeys,
  KeysLost,
  publishKeys,
  readKeys,
  watchKeys,
  withdrawKeys,
  type PublishedKeys,
  type VchanKeys,
  type VchanPlace,
} from "./rendezvous.ts";
import { WaitLimit } from "./wait-limit.ts";
import { VchanControl } from "./vchan-control.ts";
import type { VchanOrder, VchanResults } from "./vchan-orders.ts";

export interface VchanSessionOptions {
  readonly platform: Platform;
  readonly place: VchanPlace;
  readonly spawnWorker: SpawnWorker;
  /** Ends everything in order. */
  readonly signal: AbortSignal;
  /** Ends the plane, whatever it is waiting for. */
  readonly force?: AbortSignal;
  /** Limits each wait for a peer; undefined: for ever. */
  readonly timeoutMs?: number | undefined;
  /** Runs when a wait begins, or what is waited for changes, with words like "waiting for domain 1 at PATH". */
  readonly onWait?: (words: string) => void;
}

/** A connected vchan. All work on it happens in the plane. */
export interface VchanConnection {
  readonly plane: Plane;
  readonly control: VchanControl;
  readonly role: VchanRole;
  readonly peer: Domid;
  readonly readSize: number;
  readonly writeSize: number;
}

/** Fresh rings that a server has published. */
interface Offer extends PublishedKeys {
  readonly served: VchanResults["serve"];
}

/** Why a server may serve us later, as the end of "waiting for domain 0 to serve PATH". */
const LATER: Readonly<Record<string, string>> = {
  [NO_SERVER]: " anew: nobody answers where its keys lead",
  [SERVER_BUSY]: ", which it does for one client at a time: another has it now",
  [BETWEEN_CLIENTS]: ", which it does for one client at a time: it has not ended with its last one yet",
};

export class VchanSession implements AsyncDisposable {
  readonly plane: Plane;
  readonly control: VchanControl;
  readonly #options: VchanSessionOptions;
  readonly #xenstore: Xenstore;
  readonly #listeners = new DisposableStack();
  /** What the next client finds already. */
  #next: Offer | undefined;
  /** Why there is no next client. */
  #lost: KeysLost | undefined;

  private constructor(options: VchanSessionOptions, xenstore: Xenstore) {
    this.#options = options;
    this.#xenstore = xenstore;
    this.plane = new Plane("vchan", options.spawnWorker);
    this.control = new VchanControl(this.plane.control);
    this.#listeners.use(onAbort(options.signal, () => this.control.stop()));
    this.#listeners.use(onAbort(options.force, () => this.plane.close()));
  }

  /**
   * Connects to xenstore and starts the worker. Fails with `environment` when the peer's domain does not exist, or is
   * this domain, which is not allowed.
   */
  static async open(options: VchanSessionOptions, role: VchanRole): Promise<VchanSession> {
    const { platform, place } = options;
    const peer = role === "server" ? place.client : place.server;
    if (platform.name === "xen" && peer === platform.domid)
      throw new XentoolError(
        "environment",
        `domain ${peer} is this domain: a vchan to itself can crash a Linux kernel, so it is refused`,
      );
    const { timeoutMs } = options;
    using undo = new DisposableStack();
    const xenstore = undo.use(await Xenstore.connect(platform, { timeoutMs }));
    // An end that may not ask finds out only because nobody comes.
    if ((await domainExists(xenstore, peer)) === false) throw noDomain(peer);
    const session = new VchanSession(options, xenstore);
    undo.move();
    return session;
  }

  /**
   * Serves one client with fresh rings: waits for it, runs `body`, and releases everything. With `keep`, what the
   * next client finds replaces what this one has found: there is always something to be found. Returns undefined when
   * stopped before a client came. Fails with `timeout` when none came in time, with `environment` when none can come
   * any more.
   */
  async serve<T>(
    orders: VchanOrders,
    body: (vchan: VchanConnection) => Promise<T>,
    keep = false,
  ): Promise<T | undefined> {
    const { place, signal } = this.#options;
    this.#begin();
    if (this.#lost !== undefined) throw this.#lost;
    const peer = place.client;
    const offer = this.#next ?? (await this.#offer(orders));
    this.#next = undefined;
    const { served, replaced } = offer;
    const { keys } = served;
    let isNextExpected = false;
    try {
      const instead = replaced ? ", instead of the server whose keys were there" : "";
      this.#options.onWait?.(`waiting for domain ${peer} at ${place.path}${instead}`);
      if (!(await this.#clientComes(keys))) return undefined;
      isNextExpected = keep;
      return await this.#watched({ role: "server", keys, keepsKeys: true }, () =>
        body({ ...served, plane: this.plane, control: this.control, role: "server", peer }),
      );
    } finally {
      if (isNextExpected && !signal.aborted) this.#next = await this.#changeOver(offer, orders);
      else await this.#withdraw(offer);
    }
  }

  /**
   * Connects to the server and runs `body`. With `wait`, it waits for a server that does not exist yet, that died and
   * left its keys, or that has another client; without, only for one whose last client has gone. Returns undefined
   * when stopped before it had connected.
   */
  async connect<T>(wait: boolean, body: (vchan: VchanConnection) => Promise<T>): Promise<T | undefined> {
    const peer = this.#options.place.server;
    this.#begin();
    const found = await this.#findServer(wait);
    if (found === undefined) return undefined;
    try {
      const { keys, readSize, writeSize, peerSpeaksOfEnd } = found;
      const connection = {
        readSize,
        writeSize,
        plane: this.plane,
        control: this.control,
        role: "client" as const,
        peer,
      };
      // Only our own servers speak end words, and they keep their keys until they close.
      return await this.#watched({ role: "client", keys, keepsKeys: peerSpeaksOfEnd }, () =>
        body(connection),
      );
    } finally {
      await this.plane.carryOut<VchanOrder<"close">>({ op: "close" });
    }
  }

  /** Waits for a connection to a listening socket; undefined when stopped. Fails like `serve`. */
  async accept(listener: number, name: string): Promise<number | undefined> {
    this.#begin();
    await using limit = await this.#limitWait(`no connection to ${name}`);
    this.#options.onWait?.(`waiting for a connection to ${name}`);
    return await this.#inWorker(limit, () =>
      this.plane.carryOut<VchanOrder<"accept">>({ op: "accept", listener }),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#listeners.dispose();
    this.plane.close();
    if (this.#next !== undefined) await this.#withdrawKeys(this.#next);
    this.#xenstore.close();
  }

  /** Shares fresh rings and publishes their keys, which replace those of `before`. */
  async #offer(orders: VchanOrders, before?: Offer): Promise<Offer> {
    const { platform, place } = this.#options;
    const order = { op: "serve", platform: platform.descriptor, peer: place.client, orders } as const;
    const served = await this.plane.carryOut<VchanOrder<"serve">>(order);
    try {
      const published = await publishKeys(this.#xenstore, place, served.keys, before?.served.keys);
      return { served, ...published, ownsDirectory: before?.ownsDirectory ?? published.ownsDirectory };
    } finally {
      await this.plane.carryOut<VchanOrder<"close-before">>({ op: "close-before" });
    }
  }

  /**
   * Offers fresh rings beside those of a client that is gone, or, if that is more than gntalloc's limit, after them.
   * That happens before anybody hears of its end, because only our own clients wait at rings that nobody serves any
   * more. Undefined if it fails, or if another server has taken the place: the next attempt reports why.
   */
  async #changeOver(before: Offer, orders: VchanOrders): Promise<Offer | undefined> {
    try {
      return await this.#offer(orders, before);
    } catch (error) {
      await this.#withdraw(before);
      if (error instanceof KeysLost) this.#lost = error;
      if (this.#lost !== undefined) return undefined;
      return this.#offer(orders).catch(() => undefined);
    }
  }

  async #withdraw(offer: Offer): Promise<void> {
    await this.#withdrawKeys(offer);
    await this.plane.carryOut<VchanOrder<"close">>({ op: "close" });
  }

  #withdrawKeys({ served, ownsDirectory }: Offer): Promise<void> {
    return withdrawKeys(this.#xenstore, this.#options.place, served.keys, ownsDirectory).catch(ignoreLoss);
  }

  #begin(): void {
    this.control.reset();
    if (this.#options.signal.aborted) this.control.stop();
  }

  async #watched<T>(
    met: Pick<PeerWatchOptions, "role" | "keys" | "keepsKeys">,
    body: () => Promise<T>,
  ): Promise<T> {
    const { platform, place } = this.#options;
    const onGone = (): void => this.control.declarePeerDead();
    const watch = await PeerWatch.start({ platform, xenstore: this.#xenstore, place, ...met, onGone });
    try {
      return await body();
    } finally {
      await watch.stop();
    }
  }

  /** False when stopped. The keys are watched, because no client can come without them. */
  async #clientComes(keys: VchanKeys): Promise<boolean> {
    const { place } = this.#options;
    await using limit = await this.#limitWait(`no client in domain ${place.client}`);
    const look = async (): Promise<void> => {
      const found = await readKeys(this.#xenstore, place);
      if (!areKeys(found, keys)) limit.end(new KeysLost(place, found !== undefined));
    };
    limit.atEnd(await watchKeys(this.#xenstore, place, look));
    return (
      (await this.#inWorker(limit, () =>
        this.plane.carryOut<VchanOrder<"await-client">>({ op: "await-client" }),
      )) === true
    );
  }

  #limitWait(what: string, context?: ErrorContext): Promise<WaitLimit> {
    const { place, timeoutMs, platform } = this.#options;
    const peer = place.server === platform.domid ? place.client : place.server;
    return WaitLimit.start({ xenstore: this.#xenstore, peer, timeoutMs, what, ...(context && { context }) });
  }

  /**
   * Waits in the worker. The result is undefined or false when the wait was stopped; fails with the reason of
   * `limit`.
   */
  async #inWorker<T>(limit: WaitLimit, waiting: () => Promise<T>): Promise<T> {
    using _ = onAbort(limit.signal, () => this.control.stop());
    const came = await waiting();
    if (came === undefined || came === false) {
      if (!this.#options.signal.aborted) limit.signal.throwIfAborted();
    } else if (limit.signal.aborted) this.#begin(); // too late: it has come
    return came;
  }

  async #findServer(wait: boolean): Promise<(VchanResults["connect"] & { keys: VchanKeys }) | undefined> {
    const { platform, place, signal } = this.#options;
    await using limit = await this.#limitWait(`no vchan server at ${place.path}`, { reason: NO_SERVER });
    const either = AbortSignal.any([signal, limit.signal]);
    await using changes = await KeyChanges.watch(this.#xenstore, place);
    let turnEndsAt: number | undefined;
    while (!signal.aborted) {
      const keys = await readKeys(this.#xenstore, place);
      if (keys === undefined && !wait) throw noServerAt(place);
      let words = `waiting for domain ${place.server} to serve ${place.path}`;
      if (keys !== undefined) {
        const order = { op: "connect", platform: platform.descriptor, peer: place.server, keys } as const;
        try {
          return { ...(await this.plane.carryOut<VchanOrder<"connect">>(order)), keys };
        } catch (error) {
          const reason = error instanceof XentoolError ? String(error.context["reason"]) : "";
          if (LATER[reason] === undefined) throw error;
          if (!wait) {
            turnEndsAt ??= performance.now() + TURN_MS;
            const isOver = performance.now() >= turnEndsAt;
            // It may have replaced its keys since we read them.
            const mayBeNew = !isOver && reason === NO_SERVER;
            if (mayBeNew && !areKeys(await readKeys(this.#xenstore, place), keys)) {
              limit.signal.throwIfAborted();
              continue;
            }
            if (reason !== BETWEEN_CLIENTS || isOver) throw error;
          }
          words += LATER[reason];
        }
      }
      limit.signal.throwIfAborted();
      this.#options.onWait?.(words);
      await changes.next(keys === undefined ? Infinity : RETRY_MS, either);
    }
    return undefined;
  }
}

/** Changes of a server's keys, one promise at a time. */
class KeyChanges implements AsyncDisposable {
  #changed = Promise.withResolvers<void>();
  #unwatch: (() => unknown) | undefined;

  static async watch(xenstore: Xenstore, place: VchanPlace): Promise<KeyChanges> {
    const changes = new KeyChanges();
    changes.#unwatch = await watchKeys(xenstore, place, () => changes.#changed.resolve());
    return changes;
  }

  /** Waits until something has changed since the last call, `timeoutMs` has passed, or `signal` fires. */
  async next(timeoutMs: number, signal: AbortSignal): Promise<void> {
    await endsWithin(timeoutMs, this.#changed.promise, signal);
    this.#changed = Promise.withResolvers<void>();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#unwatch?.();
  }
}

function noServerAt(place: VchanPlace): XentoolError {
  return new XentoolError(
    "environment",
    `domain ${place.server} offers no vchan to domain ${place.client} at ${place.path}; --wait waits for it`,
    { path: place.path, reason: NO_SERVER },
  );
}

/** xenstored may have gone away while we served; closing goes on. */
function ignoreLoss(): void {}
