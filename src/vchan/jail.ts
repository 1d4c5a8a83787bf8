// What a relay needs in its jail, once it is connected to xenstore and listens where it has to. Its local end and the
// vchan are opened from inside, for one peer after another.
import { readlinkSync } from "node:fs";
import { dirname } from "node:path";
import type { JailNeed, JailPath } from "../native/jail.ts";
import { enterProcessJail, NAME_PATHS, platformPaths } from "../platform/jail.ts";
import type { PlatformDescriptor } from "../platform/platform.ts";
import type { VchanRole } from "./endpoint.ts";
import type { LocalSpec } from "./local.ts";

/**
 * Puts this process into the jail of a relay to `local`, which is not a command: in a jail none can be started. Throws
 * `environment` with `strict`.
 */
export function enterRelayJail(
  isStrict: boolean,
  platform: PlatformDescriptor,
  role: VchanRole,
  local: LocalSpec,
): void {
  const pages = role === "server" ? "gntalloc" : "gntdev";
  const paths = [...platformPaths(platform, ["evtchn", pages]), ...localPaths(role, local)];
  const needs = [platform.name, "share", ...localNeeds(role, local)] as const;
  enterProcessJail({ needs, paths }, { strict: isStrict, keepsNetwork: local.kind === "tcp" });
}

function localNeeds(role: VchanRole, local: LocalSpec): JailNeed[] {
  if (local.kind !== "unix" && local.kind !== "tcp") return [];
  if (role === "client") return ["accept"];
  return local.kind === "unix" ? ["local"] : ["dial", "nbd"];
}

function localPaths(role: VchanRole, local: LocalSpec): JailPath[] {
  if (local.kind === "stdio") return [0, 1].flatMap(reopened);
  if (local.kind === "unix" && role === "client") return [{ path: dirname(local.path), may: "remove" }];
  return local.kind === "tcp" && role === "server" ? [...NAME_PATHS] : [];
}

/** A terminal or a named pipe is opened once more. What has no name, as a pipe, needs no rule for that. */
function reopened(fd: number): JailPath[] {
  const path = `/proc/self/fd/${fd}`;
  const hasName = readlinkSync(path).startsWith("/");
  return hasName ? [{ path, may: "use" }] : [];
}
