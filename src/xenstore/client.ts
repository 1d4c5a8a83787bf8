// The xenstore client: nodes, transactions, watches and domains over one connection, whatever carries it.
// See docs/misc/xenstore.txt for what each operation means to the server.
import { onAbort, pause, within } from "../core/deadline.ts";
import { XentoolError } from "../core/errors.ts";
import { parseDecimal } from "../core/types.ts";
import type { Platform, XenstoreEndpoint } from "../platform/platform.ts";
import {
  decodeText,
  encodeStrings,
  XS_CONTROL,
  XS_GET_DOMAIN_PATH,
  XS_INTRODUCE,
  XS_IS_DOMAIN_INTRODUCED,
  XS_RELEASE,
  XS_RESET_WATCHES,
  XS_SET_TARGET,
  XS_TRANSACTION_START,
  XS_UNWATCH,
  XS_WATCH,
} from "../protocol/xs-wire.ts";
import { XenstoreConnection } from "./connection.ts";
import { errnoOf } from "./errors.ts";
import { malformedReply, replyStrings, XenstoreOperations } from "./operations.ts";
import { openTransport } from "./open.ts";
import type { XenstoreTransport } from "./transport.ts";
import { XenstoreTransaction } from "./transaction.ts";
import { WatchEvents, type WatchCallback } from "./watch-events.ts";

const CONNECT_TIMEOUT_MS = 5000;
const TRANSACTION_ATTEMPTS = 64;
const BACKOFF_MS_MAX = 50;

export interface WatchOptions {
  /** Comes back with each event; by default a unique one is made. */
  readonly token?: string;
  /** How many levels below the path changes are reported for; needs a server that knows WATCHDEPTH. */
  readonly depth?: number;
}

export interface WaitOptions {
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
}

/** Ends a watch. Harmless when it has ended already or the connection is gone. */
export type Unwatch = () => Promise<void>;

export class Xenstore extends XenstoreOperations {
  readonly #connection: XenstoreConnection;
  readonly #watches = new Map<string, WatchEvents>();
  #tokens = 0;

  /** A client over `transport`, which it owns from now on. */
  constructor(transport: XenstoreTransport) {
    super();
    this.#connection = new XenstoreConnection(transport);
    this.#connection.onWatchEvent = (path, token) => this.#watches.get(token)?.add(path);
  }

  /**
   * Connects to the xenstore of a platform, or at an endpoint, and makes sure that it answers within
   * `timeoutMs`. Fails with `environment` when there is nothing, `timeout` when nothing answers.
   */
  static async connect(
    target: Platform | XenstoreEndpoint,
    options: { timeoutMs?: number } = {},
  ): Promise<Xenstore> {
    const endpoint = "kind" in target ? target : target.xenstore;
    const timeoutMs = options.timeoutMs ?? CONNECT_TIMEOUT_MS;
    const deadline = performance.now() + timeoutMs;
    const client = new Xenstore(await openTransport(endpoint, timeoutMs));
    try {
      await client.#expectAnswer(Math.max(1, deadline - performance.now()), endpoint.path);
    } catch (error) {
      client.close();
      throw error;
    }
    return client;
  }

  /** Requests and watches under way; zero when nothing was forgotten. */
  get statistics(): { readonly pendingRequests: number; readonly watches: number } {
    return { pendingRequests: this.#connection.pendingCount, watches: this.#watches.size };
  }

  /** Why the connection is unusable, or undefined while it is alive. */
  get failure(): XentoolError | undefined {
    return this.#connection.failure;
  }

  /**
   * Runs `listener` once when xenstored goes away or breaks the protocol; not after `close`. Watches are
   * gone then, and every operation under way or started later fails with the same error.
   */
  onClose(listener: (error: XentoolError) => void): () => void {
    return this.#connection.onClose(listener);
  }

  /**
   * Reports changes of `path` and of everything below it, first once for the path itself. Events of one
   * path that wait for the callback are merged; a flood of paths becomes one event for `path`. The
   * callback runs once at a time; what it throws is logged.
   */
  async watch(path: string, callback: WatchCallback, options: WatchOptions = {}): Promise<Unwatch> {
    const token = options.token ?? `xentool-${++this.#tokens}`;
    if (this.#watches.has(token))
      throw new XentoolError("usage", `the watch token ${token} is in use`, { token });
    const events = new WatchEvents(path, callback);
    const depth = options.depth === undefined ? [] : [String(options.depth)];
    this.#watches.set(token, events);
    try {
      await this.request(XS_WATCH, encodeStrings(path, token, ...depth), path);
    } catch (error) {
      this.#forget(token, events);
      throw error;
    }
    return () => this.#unwatch(path, token, events);
  }

  /**
   * Waits until `predicate` holds for the value of `path` (null: no such node) and gives that value. Fails
   * with `timeout`, with `cancelled` when `signal` says so, or as reading does.
   */
  async waitFor(
    path: string,
    predicate: (value: string | null) => boolean,
    options: WaitOptions = {},
  ): Promise<string | null> {
    const { timeoutMs, signal } = options;
    const cancelled = (): XentoolError =>
      new XentoolError("cancelled", `waiting for xenstore ${path} was cancelled`);
    const late = `xenstore ${path} did not change as expected within ${timeoutMs} ms`;
    if (signal?.aborted === true) throw cancelled();
    const { promise, resolve, reject } = Promise.withResolvers<string | null>();
    promise.catch(() => {});
    const forget = this.onClose(reject);
    using _ = onAbort(signal, () => reject(cancelled()));
    const look = async (): Promise<void> => {
      const value = await this.tryRead(path);
      if (predicate(value)) resolve(value);
    };
    const watching = this.watch(path, () => look().catch(reject));
    watching.catch(reject);
    try {
      return await within(timeoutMs, promise, () => new XentoolError("timeout", late, { path }));
    } finally {
      forget();
      // Not awaited: a server that does not answer must not hold up a timeout. Requests keep their order.
      watching.then((unwatch) => unwatch()).catch(() => {});
    }
  }

  /**
   * Runs `body` in a transaction and commits it; again from the start, a bounded number of times and with
   * growing pauses, when another client changed the same nodes. What `body` throws aborts it.
   */
  async transaction<T>(body: (tx: XenstoreTransaction) => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#attempt(body);
      } catch (error) {
        if (errnoOf(error) !== "EAGAIN" || attempt >= TRANSACTION_ATTEMPTS) throw error;
        await pause(Math.random() * Math.min(BACKOFF_MS_MAX, 2 ** Math.min(attempt - 1, 10)));
      }
    }
  }

  /** The path of a domain's own directory, `/local/domain/<domid>`. */
  async getDomainPath(domid: number): Promise<string> {
    const reply = await this.request(XS_GET_DOMAIN_PATH, encodeStrings(String(domid)), String(domid));
    return replyStrings(reply)[0];
  }

  /** Whether xenstored serves this domain. */
  async isDomainIntroduced(domid: number): Promise<boolean> {
    const reply = await this.request(XS_IS_DOMAIN_INTRODUCED, encodeStrings(String(domid)), String(domid));
    return replyStrings(reply)[0] === "T";
  }

  /** Tells xenstored of a domain: its ring is the page `gfn`, its event channel the domain's `port`. */
  async introduce(domid: number, gfn: number, port: number): Promise<void> {
    await this.request(XS_INTRODUCE, encodeStrings(String(domid), String(gfn), String(port)), String(domid));
  }

  /** Tells xenstored that a domain is gone: its nodes, watches and transactions go too. */
  async release(domid: number): Promise<void> {
    await this.request(XS_RELEASE, encodeStrings(String(domid)), String(domid));
  }

  /** Gives `domid` the rights of `target`, as a device model's domain needs them. */
  async setTarget(domid: number, target: number): Promise<void> {
    await this.request(XS_SET_TARGET, encodeStrings(String(domid), String(target)), String(domid));
  }

  /** Ends every watch of this connection at the server, and here. */
  async resetWatches(): Promise<void> {
    for (const events of this.#watches.values()) events.stop();
    this.#watches.clear();
    await this.request(XS_RESET_WATCHES, encodeStrings(""), "");
  }

  /** Sends a command to xenstored itself (`xenstore-control`'s) and gives its answer. */
  async control(command: string, ...args: readonly string[]): Promise<string> {
    const reply = await this.request(XS_CONTROL, encodeStrings(command, ...args), command);
    return decodeText(reply).replace(/\0+$/, "");
  }

  /** Ends the connection. Whoever waits for a reply gets a `cancelled` error. */
  close(): void {
    for (const events of this.#watches.values()) events.stop();
    this.#watches.clear();
    this.#connection.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  protected override request(type: number, payload: Uint8Array, subject: string): Promise<Uint8Array> {
    return this.#connection.request(type, 0, payload, subject);
  }

  async #attempt<T>(body: (tx: XenstoreTransaction) => Promise<T>): Promise<T> {
    const reply = await this.request(XS_TRANSACTION_START, encodeStrings(""), "");
    const id = parseDecimal(replyStrings(reply)[0], 0xffff_ffff);
    if (id === undefined || id === 0) throw malformedReply(XS_TRANSACTION_START, "");
    const tx = new XenstoreTransaction(this.#connection, id);
    let result: T;
    try {
      result = await body(tx);
    } catch (error) {
      await tx.end(false).catch(() => {});
      throw error;
    }
    await tx.end(true);
    return result;
  }

  async #unwatch(path: string, token: string, events: WatchEvents): Promise<void> {
    if (!this.#forget(token, events) || this.failure !== undefined) return;
    await this.request(XS_UNWATCH, encodeStrings(path, token), path);
  }

  /** False when that watch had ended before. */
  #forget(token: string, events: WatchEvents): boolean {
    events.stop();
    return this.#watches.get(token) === events && this.#watches.delete(token);
  }

  async #expectAnswer(timeoutMs: number, where: string): Promise<void> {
    const late = `xenstored at ${where} did not answer within ${Math.round(timeoutMs)} ms`;
    await within(timeoutMs, this.getDomainPath(0), () => new XentoolError("timeout", late));
  }
}
