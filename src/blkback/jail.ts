// What a process that serves disks needs in its jail, and what a plane of it needs: the rest is given up before the
// first byte of a guest is looked at.
import type { Image } from "../block/image.ts";
import { filesOfIdentity } from "../block/targets/nbd/tls-identity.ts";
import { parseNbdUri } from "../block/targets/nbd/uri.ts";
import {
  missingForJail,
  type JailNeed,
  type JailPath,
  type JailUser,
  type PlaneJail,
} from "../native/jail.ts";
import { enterProcessJail, NAME_PATHS, platformPaths, type JailedIn } from "../platform/jail.ts";
import type { PlatformDescriptor } from "../platform/platform.ts";

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

/**
 * Puts this process into the jail of a server of `image`. Throws `environment` with `strict` when a part is missing.
 */
export function enterServerJail(wish: JailWish, ground: Ground, image: Image): JailedIn {
  const needs = needsOf(ground.platform, image);
  if (image.kind === "nbd") needs.push("dial");
  if (wish.notifies !== undefined) needs.push("service");
  if (wish.child !== undefined) needs.push("child");
  const keepsNetwork = image.kind === "nbd" || wish.notifies === "name";
  const { platform, statsDir } = ground;
  const devices = platformPaths(platform, ["evtchn", "gntdev"]);
  const paths: JailPath[] = [{ path: statsDir, may: "keep" }, ...devices, ...serverFiles(image)];
  return enterProcessJail({ needs, paths }, { strict: wish.strict, keepsNetwork, child: wish.child });
}

/**
 * The same for a process of `watch`: the images of its disks, whatever they are, come to it open, and so do Xen's
 * devices. What this host lacks has been said by `checkJail`. With `user`, whose files alone it can use, it is that
 * one without fail.
 */
export function enterGuestJail(isStrict: boolean, { platform, statsDir }: Ground, user?: JailUser): JailedIn {
  const paths: JailPath[] = [{ path: statsDir, may: "keep" }, ...platformPaths(platform, [])];
  const plan = { needs: [platform.name, "nbd"] as const, paths, user };
  return enterProcessJail(plan, { strict: isStrict, known: isStrict ? [] : missingForJail() });
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

function needsOf(platform: PlatformDescriptor, image: Image): JailNeed[] {
  return image.kind === "nbd" ? [platform.name, "nbd"] : [platform.name];
}

/** Certificates, too, are read again for each connection, because they are renewed. */
function serverFiles(image: Image): JailPath[] {
  if (image.kind !== "nbd") return [];
  const certificates = parseNbdUri(image.path).tls?.certificates;
  const files = certificates === undefined ? [] : filesOfIdentity(certificates);
  return [...NAME_PATHS, ...files.map((path): JailPath => ({ path, may: "read" }))];
}
