// What a toolstack says about a disk's image in `params` and `mode`: xl's `target=` and `access=`. libxl writes
// format=raw for every disk with a script, and `aio:` for every raw disk without one, so neither shows intent; `raw:`
// and `w!:` before the path do.
import { isNbdUri } from "../block/image/nbd.ts";
import type { Ways } from "../block/image/open.ts";
import { XentoolError } from "../core/errors.ts";
import { escapeText } from "../core/log.ts";

export interface Target {
  /** Of a file, or an NBD URI. */
  readonly path: string;
  readonly shared: boolean;
  readonly format: "raw" | undefined;
}

/** How to override each check in xl's disk line, for messages. */
export const TARGET_WAYS: Ways = { shared: "target=w!:PATH", raw: "target=raw:PATH", readOnly: "access=r" };

/** Throws `usage`. As for Xen's own `block` script, `mode` may also be "w!". */
export function parseTarget(params: string | null, mode: string | null): Target {
  const [, words = "", path = ""] = /^((?:(?:aio|file|raw|w!):)*)(.*)$/s.exec(params ?? "") ?? [];
  if (!path.startsWith("/") && !isNbdUri(path))
    throw new XentoolError("usage", `target "${escapeText(path)}" is no absolute path of a raw image`);
  const said = words.split(":");
  const shared = said.includes("w!") || (mode ?? "").endsWith("!");
  return { path, shared, format: said.includes("raw") ? "raw" : undefined };
}
