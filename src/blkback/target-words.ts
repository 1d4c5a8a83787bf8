// What a toolstack says of a disk's image in `params` and `mode`: xl's `target=` and `access=`. libxl writes
// format=raw for every disk with a script, and `aio:` for each raw one without, so neither says that somebody means
// it; `raw:` and `w!:` before the path do.
import type { Ways } from "../block/image/open.ts";
import { XentoolError } from "../core/errors.ts";
import { escapeText } from "../core/log.ts";

export interface Target {
  readonly path: string;
  readonly shared: boolean;
  readonly format: "raw" | undefined;
}

/** How to insist, for whoever writes xl's disk line. */
export const TARGET_WAYS: Ways = { shared: "target=w!:PATH", raw: "target=raw:PATH", readOnly: "access=r" };

/** `mode` may be "w!", too, as for Xen's own `block` script. Throws `usage`. */
export function parseTarget(params: string | null, mode: string | null): Target {
  const [, words = "", path = ""] = /^((?:(?:aio|file|raw|w!):)*)(.*)$/s.exec(params ?? "") ?? [];
  if (!path.startsWith("/"))
    throw new XentoolError("usage", `target "${escapeText(path)}" is no absolute path of a raw image`);
  const said = words.split(":");
  const shared = said.includes("w!") || (mode ?? "").endsWith("!");
  return { path, shared, format: said.includes("raw") ? "raw" : undefined };
}
