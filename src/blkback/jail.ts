// What a process that serves disks needs in its jail, and what a plane of it needs: the rest is given up before the
// first byte of a guest is looked at.
import { realpathSync } from "node:fs";
import type { Image } from "../block/image.ts";
import { deviceDirectory } from "../block/image/abilities.ts";
import { parseNbdUri } from "../block/targets/nbd/uri.ts";
import { XentoolError } from "../core/errors.ts";
import { moduleLogger } from "../core/log.ts";
import { enterJail, type JailNeed, type JailPath, type PlaneJail } from "../native/jail.ts";
import type { PlatformDescriptor } from "../platform/platform.ts";

const logger = moduleLogger("jail");

export interface JailWish {
  /** Rather no disk than one without all of the jail. */
  readonly strict: boolean;
  /** A service manager wants messages, at a socket that is a file, or has a name in our network only. */
  readonly notifies: "file" | "name" | undefined;
  /** A process that was started before, and has to be ended. */
  readonly child?: number | undefined;
}

/** What of the host is being served, and where the server keeps its files. */
export interface Served {
  readonly platform: PlatformDescriptor;
  readonly image: Image;
  readonly statsDir: string;
}

/**
 * Puts this process into the jail of a server of `image`. Returns the one for its planes. Throws `environment` with
 * `strict` when a part is missing.
 */
export function enterServerJail(wish: JailWish, served: Served): PlaneJail {
  const { platform, image } = served;
  const always: JailNeed[] = [platform.name, ...(image.kind === "nbd" ? (["nbd"] as const) : [])];
  const needs: JailNeed[] = [...always];
  if (wish.notifies !== undefined) needs.push("service");
  if (wish.child !== undefined) needs.push("child");
  const keepsNetwork = image.kind === "nbd" || wish.notifies === "name";
  const { parts, missing } = enterJail({ needs, paths: serverPaths(served) }, keepsNetwork, wish.child);
  if (missing.length > 0) sayMissing(wish.strict, missing);
  return { parts, needs: always, paths: planePaths(served) };
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

function serverPaths({ platform, image, statsDir }: Served): JailPath[] {
  const device = image.kind === "file" ? deviceDirectory(image.fd) : undefined;
  return [
    { path: statsDir, may: "keep" },
    { path: "/dev/null", may: "use" },
    ...platformPaths(platform),
    ...serverFiles(image),
    // Where the kernel says how large a block device is now.
    ...(device === undefined ? [] : [{ path: realpathSync(device), may: "read" } as const]),
  ];
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

/** A plane removes its event channel, which is a FIFO on a simulated host, and a log of writes that is empty. */
function planePaths({ platform, image, statsDir }: Served): JailPath[] {
  const removable: string[] = [];
  if (platform.name === "sim") removable.push(`${platform.dir}/dom${platform.domid}`);
  if (image.kind === "nbd") removable.push(statsDir);
  return removable.map((path) => ({ path, may: "remove" }));
}
