// What a check of `xentool selftest` is: a name, and work that throws when something is not as it must be.
import { XentoolError } from "../core/errors.ts";
import type { SpawnWorker } from "../plane/plane.ts";
import type { Platform } from "../platform/platform.ts";
import type { Xenstore } from "../xenstore/client.ts";

/** Where a check runs. */
export interface Ground {
  readonly platform: Platform;
  readonly xenstore: Xenstore;
  readonly spawnWorker: SpawnWorker;
  /** The domain at the other end of the vchan. */
  readonly peer: number | undefined;
  /** A directory for files and sockets, removed afterwards. */
  readonly directory: string;
  /** Fires when the check is to end, its time over or interrupted. */
  readonly stop: AbortSignal;
}

/** One thing that was found to hold, in words that follow "ok". */
export type OnPassed = (what: string) => void;

/** Tells what holds as it goes; throws at the first thing that does not, and leaves nothing behind either way. */
export type Check = (ground: Ground, passed: OnPassed) => Promise<void>;

/** Throws `io` with `what` unless `holds`: the platform, or xentool, does not do what it must. */
export function expect(holds: boolean, what: string): asserts holds {
  if (!holds) throw new XentoolError("io", what);
}
