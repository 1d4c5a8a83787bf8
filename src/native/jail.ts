// The jail of csrc/jail as functions: what a process that has to do with another domain gives up for good, and what a
// plane that serves a disk gives up besides.
import { XentoolError } from "../core/errors.ts";
import {
  XT_JAIL_ACCEPT,
  XT_JAIL_CALLS,
  XT_JAIL_CHILD,
  XT_JAIL_DIAL,
  XT_JAIL_FILES,
  XT_JAIL_LOCAL,
  XT_JAIL_MAKE,
  XT_JAIL_NBD,
  XT_JAIL_NETWORK,
  XT_JAIL_PRIVILEGES,
  XT_JAIL_READ,
  XT_JAIL_REMOVE,
  XT_JAIL_SERVICE,
  XT_JAIL_SHARE,
  XT_JAIL_SIM,
  XT_JAIL_USER,
  XT_JAIL_WRITE,
  XT_JAIL_XEN,
} from "./abi.ts";
import { errnoText, shim } from "./shim.ts";

/** The parts of a jail, as people call them. */
const PARTS = {
  no_new_privs: XT_JAIL_PRIVILEGES,
  "network namespaces": XT_JAIL_NETWORK,
  Landlock: XT_JAIL_FILES,
  seccomp: XT_JAIL_CALLS,
  "another user": XT_JAIL_USER,
} as const;
export type JailPart = keyof typeof PARTS;

const NEEDS = {
  sim: XT_JAIL_SIM,
  xen: XT_JAIL_XEN,
  nbd: XT_JAIL_NBD,
  dial: XT_JAIL_DIAL,
  service: XT_JAIL_SERVICE,
  child: XT_JAIL_CHILD,
  share: XT_JAIL_SHARE,
  accept: XT_JAIL_ACCEPT,
  local: XT_JAIL_LOCAL,
} as const;
export type JailNeed = keyof typeof NEEDS;

const ACCESS = {
  read: XT_JAIL_READ,
  use: XT_JAIL_READ | XT_JAIL_WRITE,
  keep: XT_JAIL_READ | XT_JAIL_WRITE | XT_JAIL_MAKE | XT_JAIL_REMOVE,
  remove: XT_JAIL_REMOVE,
} as const;

/** What may be done beneath a path that stays reachable. */
export interface JailPath {
  readonly path: string;
  readonly may: keyof typeof ACCESS;
}

/** Who a process is in its jail. */
export interface JailUser {
  readonly uid: number;
  readonly gid: number;
}

export interface JailPlan {
  readonly needs: readonly JailNeed[];
  readonly paths: readonly JailPath[];
  /** Without it, who it was. */
  readonly user?: JailUser | undefined;
}

/** What a plane of a jailed process enters. Structured-cloneable. */
export interface PlaneJail extends JailPlan {
  readonly parts: number;
}

/** The parts that this host does not offer. Namespaces take a privilege, and are not missed without it. */
export function missingForJail(): JailPart[] {
  return partsIn((XT_JAIL_FILES | XT_JAIL_CALLS) & ~shim.xt_jail_support());
}

/** Whether this process may become any user that its namespace has, and take care of that one's files. */
export function mayBecomeOthers(): boolean {
  return (shim.xt_jail_support() & XT_JAIL_USER) !== 0;
}

function partsIn(bits: number): JailPart[] {
  const found = Object.entries(PARTS).filter(([, bit]) => (bits & bit) !== 0);
  return found.map(([part]) => part as JailPart);
}

export interface Jailed {
  /** The bits of the parts it has. */
  readonly parts: number;
  /** Parts that should be there and are not. */
  readonly missing: readonly JailPart[];
  /** Why, if it is not the host that does not have them: -errno, or 0. */
  readonly failure: number;
}

/**
 * Puts this process into a jail, with every part that there is. `child` is a process that was started before and that
 * signals are sent to.
 */
export function enterJail(plan: JailPlan, keepsNetwork: boolean, child?: number): Jailed {
  const support = shim.xt_jail_support();
  // Without privileges there is no namespace to be had, and nothing is said: no system call makes a socket either.
  const wanted = XT_JAIL_PRIVILEGES | XT_JAIL_FILES | XT_JAIL_CALLS | (plan.user ? XT_JAIL_USER : 0);
  const asked = keepsNetwork ? wanted : wanted | (support & XT_JAIL_NETWORK);
  const { uid, gid } = plan.user ?? { uid: 0, gid: 0 };
  const failure = new Int32Array(1);
  const [needs, paths] = [needsOf(plan), pathList(plan)];
  const parts = shim.xt_jail_enter(asked & support, needs, child ?? 0, uid, gid, paths, failure);
  return { parts, missing: partsIn(asked & ~parts), failure: failure[0] };
}

/** Puts this thread of a jailed process into the narrower jail of a plane. Throws `environment`. */
export function enterPlaneJail(jail: PlaneJail): void {
  const result = shim.xt_jail_enter_plane(jail.parts, needsOf(jail), pathList(jail));
  if (result < 0) throw new XentoolError("environment", `cannot enter a plane's jail: ${errnoText(result)}`);
}

function needsOf({ needs }: JailPlan): number {
  return needs.reduce((bits, need) => bits | NEEDS[need], 0);
}

/** As xentool.h describes it. */
function pathList({ paths }: JailPlan): Uint8Array {
  const list = paths.map(({ path, may }) => `${String.fromCharCode(ACCESS[may])}${path}\0`);
  return new TextEncoder().encode(`${list.join("")}\0`);
}
