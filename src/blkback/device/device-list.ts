// Every block device that a domain is the backend of, whoever serves it, as xenstore and our servers' statistics show
// it.
import { parseDecimal, type Domid } from "../../core/types.ts";
import { vdevName } from "../../protocol/blkif.ts";
import { parseXenbusState, xenbusStateName } from "../../protocol/xenbus.ts";
import type { Xenstore } from "../../xenstore/client.ts";
import { backendDir, errorDir, frontendDir, type DeviceAddress } from "../address.ts";
import { isClaimed } from "./backend-directory.ts";
import { devicesOf } from "./device-directories.ts";
import { readRates } from "../limits/rate-keys.ts";
import type { DiskRates } from "../limits/rates.ts";
import { showsImage } from "./sharing.ts";
import type { DeviceStats } from "../stats/stats.ts";

export interface ListedDevice extends DeviceAddress {
  readonly vdev: string;
  readonly backendState: string;
  readonly frontendState: string;
  readonly online: boolean;
  readonly mode: string;
  readonly params: string;
  /** Of the image, as far as its backend has said, e.g. "raw" or "qcow2". */
  readonly format: string | null;
  /** Undefined until the backend has connected. */
  readonly sectors512: number | undefined;
  readonly limits: DiskRates;
  /** The statistics of the process that serves it, if it is one of this host's xentools. */
  readonly stats: DeviceStats | undefined;
  /** Why it is not served, if that is known. */
  readonly problem: string | null;
}

/** `served` are the statistics of this host's disks. */
export async function listDevices(
  xenstore: Xenstore,
  backend: Domid,
  served: readonly DeviceStats[],
): Promise<ListedDevice[]> {
  const listed: ListedDevice[] = [];
  for (const address of await devicesOf(xenstore, backend)) {
    const device = await listDevice(xenstore, address, served);
    if (device !== undefined) listed.push(device);
  }
  return listed;
}

async function listDevice(
  xenstore: Xenstore,
  address: DeviceAddress,
  served: readonly DeviceStats[],
): Promise<ListedDevice | undefined> {
  const back = backendDir(address);
  const front = frontendDir(address);
  const read = (path: string): Promise<string | null> => xenstore.tryRead(path);
  // The directory of a network card or console looks alike, but its frontend is not a vbd.
  if ((await read(`${back}/frontend`)) !== front) return undefined;
  const isOurs = await isClaimed(xenstore, address);
  const { frontend, devid } = address;
  const stats = isOurs
    ? served.find((it) => it.alive && it.domid === frontend && it.devid === devid)
    : undefined;
  const params = (await read(`${back}/params`)) ?? "";
  return {
    ...address,
    vdev: vdevName(devid),
    backendState: xenbusStateName(parseXenbusState(await read(`${back}/state`))),
    frontendState: xenbusStateName(parseXenbusState(await read(`${front}/state`).catch(() => null))),
    online: (await read(`${back}/online`)) === "1",
    mode: (await read(`${back}/mode`)) ?? "",
    params,
    format: formatOfParams(params) ?? ((await showsImage(xenstore, address)) ? "raw" : null),
    sectors512: parseDecimal(await read(`${back}/sectors`), Number.MAX_SAFE_INTEGER),
    limits: await readRates(xenstore, address),
    stats,
    problem: await problemOf(xenstore, address, isOurs, stats),
  };
}

/** libxl puts the format before the path, for QEMU: "qcow2:/images/a.qcow2", and "aio" for a raw image. */
function formatOfParams(params: string): string | null {
  const [, format] = /^(aio|raw|qcow2?|qed|vhdx?|vmdk|vdi|parallels|luks|rbd):/.exec(params) ?? [];
  return format === "aio" ? "raw" : (format ?? null);
}

/** What a server wrote about the device, or that it is gone. */
async function problemOf(
  xenstore: Xenstore,
  address: DeviceAddress,
  isOurs: boolean,
  stats: DeviceStats | undefined,
): Promise<string | null> {
  const read = (path: string): Promise<string | null> => xenstore.tryRead(path).catch(() => null);
  const back = backendDir(address);
  if ((await read(`${back}/hotplug-status`)) === "error")
    return (await read(`${back}/hotplug-error`)) ?? "its hotplug script failed";
  const error = await read(`${errorDir(address)}/error`);
  if (error !== null) return error;
  return isOurs && stats === undefined ? "nobody serves it: its server is gone" : null;
}
