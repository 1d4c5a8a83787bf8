// What every jail has in common: how it is asked for, what is said of parts that are missing, and the files by which a
// platform is used. What a command needs besides is in its own jail.ts.
import { XentoolError } from "../core/errors.ts";
import { NAME_FILES } from "../core/host-names.ts";
import { moduleLogger } from "../core/log.ts";
import { errnoText } from "../native/shim.ts";
import { enterJail, missingForJail, type Jailed, type JailPath, type JailPlan } from "../native/jail.ts";
import type { DeviceKind } from "./adapter.ts";
import type { PlatformDescriptor } from "./platform.ts";

const logger = moduleLogger("jail");

/** -ENOMEM, -ENFILE, -EMFILE: of which there is more at another time. */
const SHORT = [-12, -23, -24];

/** What a new worker opens. */
const DEV_NULL: JailPath = { path: "/dev/null", may: "use" };

/** `strict`: rather nothing at all than without all of the jail. */
export type JailMode = "on" | "strict" | "off";

/** The bits of the parts of the jail that a process is in. */
export type JailedIn = Jailed["parts"];

export interface Entering {
  /** Throws `environment` when a part is missing. */
  readonly strict: boolean;
  readonly keepsNetwork?: boolean;
  /** A process that was started before, and has to be ended. */
  readonly child?: number | undefined;
  /** Parts whose absence has been said before. */
  readonly known?: Jailed["missing"];
}

/**
 * Puts this process into a jail of `plan`, for good. Says, or throws, what it has to do without. Throws `environment`
 * when it cannot become the user it is to be, or is short of memory or descriptors.
 */
export function enterProcessJail(plan: JailPlan, how: Entering): JailedIn {
  const { keepsNetwork = false, child, known = [] } = how;
  const paths = [...plan.paths, DEV_NULL];
  const { parts, missing, failure } = enterJail({ ...plan, paths }, keepsNetwork, child);
  const why = failure === 0 ? undefined : errnoText(failure);
  if (SHORT.includes(failure)) throw new XentoolError("environment", `cannot enter the jail: ${why}`);
  if (plan.user !== undefined && missing.includes("another user"))
    throw new XentoolError("environment", `cannot become user ${plan.user.uid}: ${why ?? "no privilege"}`);
  const unsaid = missing.filter((part) => !known.includes(part));
  if (unsaid.length > 0) sayMissing(how.strict, unsaid, why);
  return parts;
}

/** Says, or throws, what of the jail this host cannot offer to any process, and what `also` is missing. */
export function checkJail(mode: JailMode, also: readonly string[] = []): void {
  const missing = mode === "off" ? [] : [...missingForJail(), ...also];
  if (missing.length > 0) sayMissing(mode === "strict", missing);
}

/** With `why`, it is not the host's lack. */
function sayMissing(isStrict: boolean, missing: readonly string[], why?: string): void {
  const what = missing.join(", ") + (why === undefined ? "" : ` (${why})`);
  if (isStrict)
    throw new XentoolError("environment", `this host lacks what --jail strict insists on: ${what}`);
  logger.warn(`the jail does without what this host lacks: ${what}`);
}

/** Opening Xen's `devices` again, or what a simulated host has in their place, for a peer that comes once more. */
export function platformPaths(platform: PlatformDescriptor, devices: readonly DeviceKind[]): JailPath[] {
  if (platform.name === "sim") return [{ path: platform.dir, may: "keep" }];
  return devices.map((device) => ({ path: `/dev/xen/${device}`, may: "use" }));
}

/** What says where hosts are. A rule is for the file that is there now, not for another one that takes its place. */
export const NAME_PATHS: readonly JailPath[] = NAME_FILES.map((path) => ({ path, may: "read" }));
