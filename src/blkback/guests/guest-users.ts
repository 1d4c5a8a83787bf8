// The user that the process of a guest becomes in its jail: one for that guest alone. So the owners of files are enough
// to keep those of root and of the other guests' processes from it, also where the kernel has no Landlock.
import { mkdirSync, readFileSync, realpathSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { XentoolError } from "../../core/errors.ts";
import type { Domid } from "../../core/types.ts";
import { mayBecomeOthers, type JailUser } from "../../native/jail.ts";
import { checkJail, type JailMode } from "../../platform/jail.ts";
import type { PlatformDescriptor } from "../../platform/platform.ts";

/** Domain numbers are below DOMID_FIRST_RESERVED. */
const DOMIDS = 0x7ff0;
/** Below it are users of the system and of people. */
const BASE_MIN = 60_000;
/** The number after those of all domains is that of no user. */
const BASE_MAX = 2 ** 32 - 1 - DOMIDS;

/** Throws `usage` when domains may not be users from `base` on; 0 means none. */
export function checkUidBase(base: number): void {
  if (base === 0 || (Number.isSafeInteger(base) && base >= BASE_MIN && base <= BASE_MAX)) return;
  throw new XentoolError("usage", `--uid-base is 0, or ${BASE_MIN} to ${BASE_MAX}, not ${base}`);
}

export type UserOf = (frontend: Domid) => JailUser;

export interface WantedUsers {
  readonly jail: JailMode;
  /** The process of domain N is this user plus N; 0: who we are. */
  readonly uidBase: number;
  readonly statsDir: string;
}

/** Logs, or throws, which parts of the jail this host cannot offer. Undefined: guests' processes stay who we are. */
export function usersOfGuests(platform: PlatformDescriptor, wanted: WantedUsers): UserOf | undefined {
  const { jail, uidBase, statsDir } = wanted;
  const wants = jail !== "off" && uidBase !== 0;
  const userOf = wants ? findUsers(uidBase, platform, statsDir) : undefined;
  checkJail(jail, wants && userOf === undefined ? ["a user for each guest"] : []);
  return userOf;
}

/** Undefined if there can be none: we are not root, users are missing here, or they could not reach their files. */
function findUsers(base: number, platform: PlatformDescriptor, stateDir: string): UserOf | undefined {
  if (!mayBecomeOthers() || !isThere("uid_map", base)) return undefined;
  // On a simulated host, the group of its directory lets each of them use what stands for Xen.
  const group = platform.name === "sim" ? statSync(platform.dir).gid : undefined;
  if (group === 0 || (group === undefined && !isThere("gid_map", base))) return undefined;
  mkdirSync(stateDir, { recursive: true, mode: 0o755 });
  if (!mayPass(realpathSync(stateDir), group)) return undefined;
  return (frontend) => ({ uid: base + frontend, gid: group ?? base + frontend });
}

/** Whether our namespace has numbers for all domains. */
function isThere(map: "uid_map" | "gid_map", base: number): boolean {
  return readFileSync(`/proc/self/${map}`, "utf8")
    .trimEnd()
    .split("\n")
    .some((line) => {
      const [first = NaN, , count = NaN] = line.trim().split(/\s+/).map(Number);
      return first <= base && base + DOMIDS <= first + count;
    });
}

/** Whether strangers, or those of `group`, may go through `dir` and all above it. */
function mayPass(dir: string, group: number | undefined): boolean {
  const { mode, gid } = statSync(dir);
  const may = (mode & 0o001) !== 0 || (gid === group && (mode & 0o010) !== 0);
  return may && (dir === "/" || mayPass(dirname(dir), group));
}
