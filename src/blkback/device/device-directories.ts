// The directories of the devices that a domain is the backend of, and which device a name there stands for.
import { DOMID_FIRST_RESERVED, parseDecimal, type Domid } from "../../core/types.ts";
import type { Xenstore } from "../../xenstore/client.ts";
import { errnoOf } from "../../xenstore/errors.ts";
import type { DeviceAddress } from "../address.ts";

/** Numbers of virtual block devices are below. */
const DEVIDS = 2 ** 29;

/** The guest that a directory of backends is named after. */
export function guestNamed(name: string): Domid | undefined {
  return parseDecimal(name, DOMID_FIRST_RESERVED - 1) as Domid | undefined;
}

/** The device whose directory is `guest`/`devid`. */
export function deviceNamed(
  backend: Domid,
  kind: string,
  guest: string,
  devid: string,
): DeviceAddress | undefined {
  const frontend = guestNamed(guest);
  const number = parseDecimal(devid, DEVIDS);
  if (frontend === undefined || number === undefined) return undefined;
  return { backend, kind, frontend, devid: number };
}

/** Names in the directory, none if it is not there. */
export async function namesIn(xenstore: Xenstore, path: string): Promise<string[]> {
  try {
    return await xenstore.directory(path);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return [];
    throw error;
  }
}

/** All devices of `backend`, or those of one kind. Other things than block devices have such directories, too. */
export async function devicesOf(xenstore: Xenstore, backend: Domid, kind?: string): Promise<DeviceAddress[]> {
  const found: DeviceAddress[] = [];
  const root = `/local/domain/${backend}/backend`;
  for (const it of kind === undefined ? await namesIn(xenstore, root) : [kind])
    for (const guest of await namesIn(xenstore, `${root}/${it}`))
      for (const devid of await namesIn(xenstore, `${root}/${it}/${guest}`)) {
        const address = deviceNamed(backend, it, guest, devid);
        if (address !== undefined) found.push(address);
      }
  return found;
}
