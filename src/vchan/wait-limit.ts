// When a wait for a peer has no sense any more: the time is up, the peer's domain is gone, or xenstored is.
import { XentoolError, type ErrorContext } from "../core/errors.ts";
import type { Domid } from "../core/types.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { watchDomain } from "./domain-watch.ts";

export interface WaitLimitOptions {
  readonly xenstore: Xenstore;
  readonly peer: Domid;
  /** Undefined: for ever. */
  readonly timeoutMs: number | undefined;
  /** For the message when the time is up: what did not happen. */
  readonly what: string;
  /** Of that error. */
  readonly context?: ErrorContext;
}

export class WaitLimit implements AsyncDisposable {
  readonly #over = new AbortController();
  readonly #ends: (() => unknown)[] = [];

  /** Counts from now on. Only the control domain is told of domains that go; others wait on. */
  static async start({ xenstore, peer, timeoutMs, what, context }: WaitLimitOptions): Promise<WaitLimit> {
    const limit = new WaitLimit();
    if (timeoutMs !== undefined) {
      const late = new XentoolError("timeout", `${what} within ${timeoutMs / 1000} s`, context);
      const timer = setTimeout(() => limit.end(late), timeoutMs);
      limit.onceOver(() => clearTimeout(timer));
    }
    limit.onceOver(xenstore.onClose((error) => limit.end(error)));
    const gone = new XentoolError("environment", `there is no domain ${peer} any more`, { domid: peer });
    const unwatch = await watchDomain(xenstore, peer, () => limit.end(gone));
    if (unwatch !== undefined) limit.onceOver(unwatch);
    return limit;
  }

  /** Aborted when waiting is over, with the error as its reason. */
  get signal(): AbortSignal {
    return this.#over.signal;
  }

  /** Ends the wait for another reason. */
  end(error: XentoolError): void {
    this.#over.abort(error);
  }

  /** Runs `end` when nobody waits any more, whatever came of it. */
  onceOver(end: () => unknown): void {
    this.#ends.push(end);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // A watch cannot be ended where xenstored is gone, and need not be.
    await Promise.allSettled(this.#ends.splice(0).map(async (end) => await end()));
  }
}
