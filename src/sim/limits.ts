// The limits of a simulated host's domains, their usual values, and how they are written on a command line.
import { XentoolError } from "../core/errors.ts";

/** Limits of every domain (csrc/xentool.h, struct xt_sim_limits); `slots` is the whole host's. */
export interface SimLimits {
  /** Grant references, each with a page. */
  readonly grantEntries: number;
  /** Pages that a domain's processes may share at a time. */
  readonly sharePages: number;
  /** Pages of a domain that others may have mapped. */
  readonly maptrack: number;
  readonly ports: number;
  /** Open event-channel handles. */
  readonly handles: number;
  /** Attached processes. */
  readonly slots: number;
}

/** 64 frames of grant entries, as Xen's default; 1024 pages, as gntalloc's. */
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

/** The defaults as `parseLimits` reads them. */
export const DEFAULT_LIMITS_TEXT = Object.entries(NAMES)
  .map(([name, key]) => `${name}=${DEFAULT_LIMITS[key]}`)
  .join(" ");

/** Limits from texts like `share-pages=16`. Fails with `usage`. */
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
