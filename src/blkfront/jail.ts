// What the export of a disk needs in its jail, once it has its socket and its lock.
import { dirname } from "node:path";
import { enterProcessJail, platformPaths } from "../platform/jail.ts";
import type { PlatformDescriptor } from "../platform/platform.ts";
import { claimsDir } from "./claim.ts";

/** Puts this process into the jail of an NBD server at `socket`. Throws `environment` with `strict`. */
export function enterExportJail(isStrict: boolean, platform: PlatformDescriptor, socket: string): void {
  const needs = [platform.name, "share", "accept"] as const;
  const paths = [
    ...platformPaths(platform, ["evtchn", "gntalloc"]),
    { path: claimsDir(platform), may: "remove" },
    { path: dirname(socket), may: "remove" },
  ] as const;
  enterProcessJail({ needs, paths }, { strict: isStrict });
}
