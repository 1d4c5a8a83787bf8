// The xenstore client: nodes, transactions, watches and domains over one connection, independent of the transport. See
// docs/misc/xenstore.txt for what each operation means to the server.
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
import { BACKOFF_MS_MAX, CONNECT_TIMEOUT_MS, TRANSACTION_ATTEMPTS } from "./bounds.ts";
import { XenstoreConnection } from "./connection.ts";
import { errnoOf } from "./errors.ts";
import { malformedReply, replyStrings, XenstoreOperations } from "./operations.ts";
import { openTransport } from "./open.ts";
import type { XenstoreTransport } from "./transport.ts";
import { XenstoreTransaction } from "./transaction.ts";
import { WatchEvents, type WatchCallback } from "./watch-events.ts";

export interface WatchOptions {
  /** Returned with each event; by default a unique one is generated. */
  readonly token?: string;
  /** Number of levels below the path to report changes for; needs a server with the WATCHDEPTH feature. */
  readonly depth?: number;
}

export interface WaitOptions {
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
}

/** Ends a watch. Harmless if it has already ended or the connection is gone. */
export type Unwatch = () => Promise<void>;

export class Xenstore extends XenstoreOperations {
  readonly #connection: XenstoreConnection;
  readonly #watches = new Map<string, WatchEvents>();
  #tokens = 0;

  /** Creates a client over `transport`, which it owns from now on. */
  constructor(transport: XenstoreTransport) {
    super();
    this.#connection = new XenstoreConnection(transport);
    this.#connection.onWatchEvent = (path, token) => this.#watches.get(token)?.add(path);
  }

  /**
   * Connects to the xenstore of a platform, or at an endpoint, and makes sure that it responds within `timeoutMs`.
   * Fails with `environment` if there is none, `timeout` if it does not respond.
   */
  static async connect(
    at: Platform | XenstoreEndpoint,
    options: { timeoutMs?: number | undefined } = {},
  ): Promise<Xenstore> {
    const endpoint = "kind" in at ? at : at.xenstore;
    const timeoutMs = options.timeoutMs ?? CONNECT_TIMEOUT_MS;
    const deadline = performance.now() + timeoutMs;
    using undo = new DisposableStack();
    const client = undo.use(new Xenstore(await openTransport(endpoint, timeoutMs)));
    await client.#expectAnswer(Math.max(1, deadline - performance.now()), endpoint.path);
    undo.move();
    return client;
  }

  /** Requests in progress and active watches; both zero if nothing was forgotten. */
  get statistics(): { readonly pendingRequests: number; readonly watches: number } {
    return { pendingRequests: this.#connection.pendingCount, watches: this.#watches.size };
  }

  /** Why the connection is unusable, or undefined while it is alive. */
  get failure(): XentoolError | undefined {
    return this.#connection.failure;
  }

  /**
   * Runs `listener` once when xenstored goes away or breaks the protocol, but not after `close`. By then the watches
   * are gone, and every operation in progress or started later fails with the same error.
   */
  onClose(listener: (error: XentoolError) => void): () => void {
    return this.#connection.onClose(listener);
  }

  /**
   * Reports changes of `path` and everything below it, beginning with one event for the path itself. Events for the
   * same path that wait for the callback are merged; a flood of paths becomes one event for `path`. Calls of the
   * callback never overlap; what it throws is logged.
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
   * Waits until `predicate` holds for the value of `path` (null: no such node) and returns that value. Fails with
   * `timeout`, with `cancelled` when `signal` is aborted, or as reading does.
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
      // Not awaited: a server that does not respond must not delay a timeout. Requests keep their order.
      watching.then((unwatch) => unwatch()).catch(() => {});
    }
  }

  /**
   * Runs `body` in a transaction and commits it. If another client changed the same nodes, or other clients of our
   * domain have all the transactions that it may have, starts over, a bounded number of times and with growing pauses.
   * If `body` throws, the transaction is aborted.
   */
  async transaction<T>(body: (tx: XenstoreTransaction) => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#attempt(body);
      } catch (error) {
        if (!metOthers(error) || attempt >= TRANSACTION_ATTEMPTS) throw error;
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

  /** Introduces a domain to xenstored: its ring is the page `gfn`, its event channel the domain's `port`. */
  async introduce(domid: number, gfn: number, port: number): Promise<void> {
    await this.request(XS_INTRODUCE, encodeStrings(String(domid), String(gfn), String(port)), String(domid));
  }

  /** Tells xenstored that a domain is gone; its nodes, watches and transactions go too. */
  async release(domid: number): Promise<void> {
    await this.request(XS_RELEASE, encodeStrings(String(domid)), String(domid));
  }

  /** Gives `domid` the rights of `target`, as needed by a device model's domain. */
  async setTarget(domid: number, target: number): Promise<void> {
    await this.request(XS_SET_TARGET, encodeStrings(String(domid), String(target)), String(domid));
  }

  /** Ends every watch of this connection, at the server and here, and at the server its transactions. */
  async resetWatches(): Promise<void> {
    for (const events of this.#watches.values()) events.stop();
    this.#watches.clear();
    await this.request(XS_RESET_WATCHES, encodeStrings(""), "");
  }

  /** Sends a command to xenstored itself (like `xenstore-control`) and returns its reply. */
  async control(command: string, ...args: readonly string[]): Promise<string> {
    const reply = await this.request(XS_CONTROL, encodeStrings(command, ...args), command);
    return decodeText(reply).replace(/\0+$/, "");
  }

  /** Closes the connection. Requests that wait for a reply fail with `cancelled`. */
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

  /** False if that watch had already ended. */
  #forget(token: string, events: WatchEvents): boolean {
    events.stop();
    return this.#watches.get(token) === events && this.#watches.delete(token);
  }

  async #expectAnswer(timeoutMs: number, where: string): Promise<void> {
    const late = `xenstored at ${where} did not answer within ${Math.round(timeoutMs)} ms`;
    await within(timeoutMs, this.getDomainPath(0), () => new XentoolError("timeout", late));
  }
}

/** Whether a transaction failed for what others do at the moment. */
function metOthers(error: unknown): boolean {
  const errno = errnoOf(error);
  if (errno === "EAGAIN") return true;
  const isStart = error instanceof XentoolError && error.context["operation"] === "TRANSACTION_START";
  return isStart && (errno === "EQUOTA" || errno === "ENOSPC");
}
