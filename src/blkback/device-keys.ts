// Writing below a device's directory. xenstore makes the directories of what is written, so a word that comes after
// the toolstack has removed a device would leave half of one there: every write is in a transaction that finds the
// device.
import type { Xenstore } from "../xenstore/client.ts";
import type { XenstoreOperations } from "../xenstore/operations.ts";
import { backendDir, type DeviceAddress } from "./address.ts";

/** Whether the backend's directory is that of a device, and not what a late write has left of one. */
export function isDevice(xenstore: XenstoreOperations, address: DeviceAddress): Promise<boolean> {
  return xenstore.exists(`${backendDir(address)}/frontend`);
}

/** Writes `keys` below the backend's directory, and `others` (by path); false: there is no such device any more. */
export function writeKeys(
  xenstore: Xenstore,
  address: DeviceAddress,
  keys: Readonly<Record<string, string | number>>,
  others: Readonly<Record<string, string>> = {},
): Promise<boolean> {
  return xenstore.transaction(async (tx) => {
    if (!(await isDevice(tx, address))) return false;
    for (const [key, value] of Object.entries(keys))
      await tx.write(`${backendDir(address)}/${key}`, String(value));
    for (const [path, value] of Object.entries(others)) await tx.write(path, value);
    return true;
  });
}
