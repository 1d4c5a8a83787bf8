// The limits of a simulated host's domains, their defaults, and their command-line syntax.
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
