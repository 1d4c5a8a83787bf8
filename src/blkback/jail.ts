// What a process that serves disks needs in its jail, and what a plane of it needs: the rest is given up before the
// first byte of a guest is looked at.
import type { Image } from "../block/image.ts";
import { parseNbdUri } from "../block/targets/nbd/uri.ts";
import { XentoolError } from "../core/errors.ts";
import { moduleLogger } from "../core/log.ts";
import {
  enterJail,
  missingForJail,
  type Jailed,
  type JailNeed,
  type JailPath,
  type PlaneJail,
} from "../native/jail.ts";
import type { PlatformDescriptor } from "../platform/platform.ts";

const logger = moduleLogger("jail");

/** `strict`: rather no disk than one without all of the jail. */
export type JailMode = "on" | "strict" | "off";

export interface JailWish {
  readonly strict: boolean;
  /** A service manager wants messages, at a socket that is a file, or has a name in our network only. */
  readonly notifies: "file" | "name" | undefined;
  /** A process that was started before, and has to be ended. */
  readonly child?: number | undefined;
}

/** Where a server is, and where it keeps its files. */
export interface Ground {
  readonly platform: PlatformDescriptor;
  readonly statsDir: string;
}

/** The parts of the jail that a process is in. */
export type JailedIn = number;

/**
 * Puts this process into the jail of a server of `image`. Throws `environment` with `strict` when a part is missing.
 */
export function enterServerJail(wish: JailWish, ground: Ground, image: Image): JailedIn {
  const needs = needsOf(ground.platform, image);
  if (image.kind === "nbd") needs.push("dial");
  if (wish.notifies !== undefined) needs.push("service");
  if (wish.child !== undefined) needs.push("child");
  const keepsNetwork = image.kind === "nbd" || wish.notifies === "name";
  const paths = [...groundPaths(ground), ...serverFiles(image)];
  return entered(enterJail({ needs, paths }, keepsNetwork, wish.child), wish.strict);
}

/**
 * The same for a process of `watch`: the images of its disks, whatever they are, come to it open. What this host lacks
 * has been said by `checkGuestJail`.
 */
export function enterGuestJail(isStrict: boolean, ground: Ground): JailedIn {
  const plan = { needs: [ground.platform.name, "nbd"] as const, paths: groundPaths(ground) };
  const known = isStrict ? [] : missingForJail();
  const { parts, missing } = enterJail(plan, false);
  return entered({ parts, missing: missing.filter((part) => !known.includes(part)) }, isStrict);
}

/** The narrower jail of a plane that serves `image`. */
export function planeJail(parts: JailedIn, { platform, statsDir }: Ground, image: Image): PlaneJail {
  const removable: string[] = [];
  // Its event channel, which is a FIFO on a simulated host, and a log of writes that is empty.
  if (platform.name === "sim") removable.push(`${platform.dir}/dom${platform.domid}`);
  if (image.kind === "nbd") removable.push(statsDir);
  const paths = removable.map((path): JailPath => ({ path, may: "remove" }));
  return { parts, needs: needsOf(platform, image), paths };
}

/** Says, or throws, what of the jail this host cannot offer to the processes of guests. */
export function checkGuestJail(mode: JailMode): void {
  const missing = mode === "off" ? [] : missingForJail();
  if (missing.length > 0) sayMissing(mode === "strict", missing);
}

function needsOf(platform: PlatformDescriptor, image: Image): JailNeed[] {
  return image.kind === "nbd" ? [platform.name, "nbd"] : [platform.name];
}

function entered({ parts, missing }: Jailed, isStrict: boolean): JailedIn {
  if (missing.length > 0) sayMissing(isStrict, missing);
  return parts;
}

function sayMissing(isStrict: boolean, missing: readonly string[]): void {
  const what = missing.join(", ");
  if (isStrict)
    throw new XentoolError("environment", `this host lacks what --jail strict insists on: ${what}`);
  logger.warn(`the jail does without what this host lacks: ${what}`);
}

/** Opening an event channel or a grant table again, for a guest that connects once more. */
function platformPaths(platform: PlatformDescriptor): JailPath[] {
  if (platform.name === "sim") return [{ path: platform.dir, may: "keep" }];
  return ["/dev/xen/evtchn", "/dev/xen/gntdev"].map((path) => ({ path, may: "use" }));
}

function groundPaths({ platform, statsDir }: Ground): JailPath[] {
  return [{ path: statsDir, may: "keep" }, { path: "/dev/null", may: "use" }, ...platformPaths(platform)];
}

/** What says where a host is. A name is resolved again for each connection. */
const NAMES = ["/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf"];

/** Certificates, too, are read again for each connection, because they are renewed. */
function serverFiles(image: Image): JailPath[] {
  if (image.kind !== "nbd") return [];
  const certificates = parseNbdUri(image.path).tls?.certificates;
  const paths = certificates === undefined ? NAMES : [...NAMES, certificates];
  return paths.map((path) => ({ path, may: "read" }));
}
