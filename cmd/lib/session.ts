// Shared by the commands about block devices: the options that name a device, and a platform with a xenstore
// connection for the duration of one command.
import type { DeviceAddress } from "../../src/blkback/address.ts";
import type { Platform } from "../../src/platform/platform.ts";
import type { Xenstore } from "../../src/xenstore/client.ts";
import { choice, text, type ValuesOf } from "./option.ts";
import type { CommandContext } from "./run-command.ts";

/** --domid, --vdev and --kind, which name a device. */
export const DEVICE_OPTIONS = {
  domid: text("The guest, by number or name", { required: true, complete: "domain" }),
  vdev: text("Its disk: xvdb, sda, 51728", { required: true, complete: "vdev" }),
  kind: text("Directory name of the backend (default: what there is, else qdisk)"),
};

/** --device-type, for commands that create a device. */
export const DEVICE_TYPE = choice(["disk", "cdrom"], "What the guest sees", { initial: "disk" });

export interface Session {
  readonly platform: Platform;
  readonly xenstore: Xenstore;
}

/** Runs `body` with a platform and a xenstore connection, then closes both. */
export async function withSession<T>(
  context: CommandContext,
  body: (session: Session) => Promise<T>,
): Promise<T> {
  const { choosePlatform } = await import("../../src/platform/open.ts");
  const { Xenstore } = await import("../../src/xenstore/client.ts");
  using platform = await choosePlatform({ platform: context.platform });
  using xenstore = await Xenstore.connect(platform, { timeoutMs: context.timeoutMs });
  return await body({ platform, xenstore });
}

type DeviceArguments = ValuesOf<typeof DEVICE_OPTIONS>;

/**
 * Runs `body` in a session, with the device that the arguments name. They are checked before anything is looked for: a
 * mistyped name needs no xenstore.
 */
export async function withDevice<T>(
  context: CommandContext,
  argv: DeviceArguments,
  body: (session: Session, address: DeviceAddress) => Promise<T>,
): Promise<T> {
  const { findDomainIn, parseDomain } = await import("../../src/xenstore/domains.ts");
  const { XentoolError } = await import("../../src/core/errors.ts");
  const { parseVdev } = await import("../../src/protocol/blkif.ts");
  const devid = parseVdev(argv.vdev);
  if (devid === undefined)
    throw new XentoolError("usage", `--vdev: "${argv.vdev}" is not a disk name such as xvdb`);
  if (argv.kind !== undefined && !/^[A-Za-z0-9_-]{1,32}$/.test(argv.kind))
    throw new XentoolError("usage", `--kind: "${argv.kind}" is not a directory name`);
  const guest = parseDomain(argv.domid, "--domid");
  return withSession(context, async (session) => {
    const { DEFAULT_KIND } = await import("../../src/blkback/address.ts");
    const { findKind } = await import("../../src/blkback/toolstack.ts");
    const frontend = await findDomainIn(session.xenstore, guest);
    const device = { backend: session.platform.domid, frontend, devid };
    const kind = argv.kind ?? (await findKind(session.xenstore, device)) ?? DEFAULT_KIND;
    return body(session, { ...device, kind });
  });
}

/** How long a guest has to let go of a disk, unless --timeout says otherwise. */
export const DETACH_TIMEOUT_MS = 10_000;
