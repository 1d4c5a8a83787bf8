// The limits of a simulated host's domains, their defaults, and their command-line syntax; and the sizes and times of
// the host's own processes. test/unit/bounds.test.ts asserts how they depend on each other.
import { XentoolError } from "../core/errors.ts";

/** Limits per domain (csrc/xen/xen.h, struct xt_sim_limits); `slots` applies to the whole host. */
export interface SimLimits {
  /** Grant references, each with its page. */
  readonly grantEntries: number;
  /** Pages that a domain's processes may share at a time. */
  readonly sharePages: number;
  /** Pages of a domain that others may map at a time. */
  readonly maptrack: number;
  readonly ports: number;
  /** Open event-channel handles. */
  readonly handles: number;
  /** Attached processes. */
  readonly slots: number;
}

/** As Xen's default, 64 frames of grant entries; as gntalloc's, 1024 pages. */
export const DEFAULT_LIMITS: SimLimits = {
  grantEntries: 32_768,
  sharePages: 1024,
  maptrack: 65_536,
  ports: 1024,
  handles: 256,
  slots: 256,
};

/** Between two looks whether everything that was used has been given back. */
export const SETTLE_STEP_MS = 5;
/** How long what uses a host may take to end once its command has; `serve` takes 10 s for a guest that clings. */
export const USERS_END_MS = 12_000;

/** When there was no descriptor left to attend to a domain, the host tries again after this time. */
export const ATTEND_AGAIN_MS = 10;

/** The longest line on the control socket, which bounds what a client that sends no line end costs. */
export const CONTROL_LINE_BYTES_MAX = 4096;

/** How long a tool waits for the host's answer. */
export const CONTROL_TIMEOUT_MS = 10_000;
/** How long each host may take to answer `sim list`. */
export const LIST_ANSWER_MS = 2000;

/** How long a host may take to start, or to stop: on a busy machine it takes seconds. */
export const DAEMON_START_MS = 15_000;

/** Between two looks whether a host that was told to stop is gone. */
export const DAEMON_STOP_STEP_MS = 10;

/** What is shown of the last words of a host that did not start. */
export const DAEMON_LOG_BYTES_MAX = 2000;

const NAMES: Readonly<Record<string, keyof SimLimits>> = {
  "grant-entries": "grantEntries",
  "share-pages": "sharePages",
  maptrack: "maptrack",
  ports: "ports",
  handles: "handles",
  processes: "slots",
};

/** The defaults in the syntax of `parseLimits`. */
export const DEFAULT_LIMITS_TEXT = Object.entries(NAMES)
  .map(([name, key]) => `${name}=${DEFAULT_LIMITS[key]}`)
  .join(" ");

/** Parses limits like `share-pages=16`. Fails with `usage`. */
export function parseLimits(texts: readonly string[]): Partial<SimLimits> {
  const limits: Partial<Record<keyof SimLimits, number>> = {};
  for (const text of texts) {
    const [name, value] = text.split("=", 2) as [string, string | undefined];
    const key = Object.hasOwn(NAMES, name) ? NAMES[name] : undefined;
    if (key === undefined || value === undefined || !/^\d{1,7}$/.test(value)) {
      const names = Object.keys(NAMES).join(", ");
      throw new XentoolError("usage", `a limit is NAME=NUMBER, with one of ${names}; not ${text}`);
    }
    limits[key] = Number(value);
  }
  return limits;
}
