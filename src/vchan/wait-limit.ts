// Ends a wait for a peer that has become pointless: the time is up, or the peer's domain or xenstored is gone.
import { XentoolError, type ErrorContext } from "../core/errors.ts";
import type { Domid } from "../core/types.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { watchDomain } from "../xenstore/domains.ts";

export interface WaitLimitOptions {
  readonly xenstore: Xenstore;
  readonly peer: Domid;
  /** Undefined: for ever. */
  readonly timeoutMs: number | undefined;
  /** For the message when the time is up: what did not happen. */
  readonly what: string;
  /** The context of that error. */
  readonly context?: ErrorContext;
}

export class WaitLimit implements AsyncDisposable {
  readonly #over = new AbortController();
  readonly #ends: (() => unknown)[] = [];

  /** Counts from now on. Only the control domain learns that a domain is gone; others keep waiting. */
  static async start({ xenstore, peer, timeoutMs, what, context }: WaitLimitOptions): Promise<WaitLimit> {
    await using undo = new AsyncDisposableStack();
    const limit = undo.use(new WaitLimit());
    if (timeoutMs !== undefined) {
      const late = new XentoolError("timeout", `${what} within ${timeoutMs / 1000} s`, context);
      const timer = setTimeout(() => limit.end(late), timeoutMs);
      limit.atEnd(() => clearTimeout(timer));
    }
    limit.atEnd(xenstore.onClose((error) => limit.end(error)));
    const gone = new XentoolError("environment", `there is no domain ${peer} any more`, { domid: peer });
    const unwatch = await watchDomain(xenstore, peer, () => limit.end(gone));
    if (unwatch !== undefined) limit.atEnd(unwatch);
    undo.move();
    return limit;
  }

  /** Aborted when the wait is over, with the error as its reason. */
  get signal(): AbortSignal {
    return this.#over.signal;
  }

  /** Ends the wait for another reason. */
  end(error: XentoolError): void {
    this.#over.abort(error);
  }

  /** Runs `end` once nobody waits any more, whatever the outcome. */
  atEnd(end: () => unknown): void {
    this.#ends.push(end);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Ending a watch fails when xenstored is gone, and is not needed then.
    await Promise.allSettled(this.#ends.splice(0).map(async (end) => await end()));
  }
}
