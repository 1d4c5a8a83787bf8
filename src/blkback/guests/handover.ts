// How one `watch` hands its guests to the next one, which it has started, while they work: the next one opens all it
// needs and prepares a process for each guest; then guest after guest is let go by the old one and taken by the new
// one. So a guest waits for its own disks alone, and for nothing that can be done before. Nothing rests on it: whoever
// dies in the middle, the locks of devices say who may serve, and journals what is to be done.
import { within } from "../../core/deadline.ts";
import { XentoolError } from "../../core/errors.ts";
import type { Domid } from "../../core/types.ts";

/** The next `watch`, as the one that hands over sees it. */
export interface Successor {
  /** Resolves when it waits for guests. */
  readonly ready: Promise<void>;
  /** Rejects when it is gone. */
  readonly gone: Promise<never>;
  /** Hands over a guest that nobody serves any more. Resolves when it is served; rejects if the successor is silent. */
  take(frontend: Domid): Promise<void>;
  /** Ends the handover: all guests are its. Resolves when it serves without us; rejects when it is gone or silent. */
  over(): Promise<void>;
}

/** The `watch` that hands over, as the next one sees it. */
export interface Predecessor {
  /** Reports that we wait for guests. `onTake` is called for each that is ours now; it resolves when that is served. */
  ready(onTake: (frontend: Domid) => Promise<void>): void;
  /** Resolves when all guests are ours, and also when the predecessor is gone. */
  readonly over: Promise<void>;
  /** Reports that we serve without it. Resolves when it takes nothing back any more. */
  serves(): Promise<void>;
}

/** By then one that is going to serve has a process for each of many guests, on a busy host too. */
export const READY_PATIENCE_MS = 120_000;

/** Resolves when `successor` waits for guests. Rejects when it is gone, or hangs before that. */
export function untilReady({ ready }: Pick<Successor, "ready">): Promise<void> {
  const hangs = (): Error => new XentoolError("environment", "the next `watch` does not become ready");
  return within(READY_PATIENCE_MS, ready, hangs);
}

/** From the old one to the new one. Both are ours, of whatever version: so this may only grow. */
export type HandoverOrder = { readonly take: number } | { readonly over: true };
/** From the new one to the old one. */
export type HandoverReport =
  /** `says`: when all is over it will say that it serves, which older ones do not. */
  | { readonly ready: true; readonly says?: "serves" }
  /** The order to take it has come; it is taken in a while. */
  | { readonly heard: number }
  | { readonly taken: number }
  | { readonly serves: true };
