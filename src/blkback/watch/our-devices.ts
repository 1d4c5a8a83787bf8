// Which of the devices in xenstore are to be served by `watch`: those whose `script` is our hotplug script, or all of
// them, as in a driver domain.
import type { XenstoreOperations } from "../../xenstore/operations.ts";
import { HOTPLUG_SCRIPT } from "../host/host-files.ts";

/**
 * Whether the device of this directory is ours. A toolstack may write keys one by one. A device that still lacks the
 * keys that identify it will be looked at again.
 */
export async function isOurDevice(
  xenstore: XenstoreOperations,
  dir: string,
  anyScript: boolean,
): Promise<boolean> {
  const needed = ["frontend", "params", "mode"].map((key) => xenstore.exists(`${dir}/${key}`));
  if ((await Promise.all(needed)).includes(false)) return false;
  if (anyScript) return true;
  const script = await xenstore.tryRead(`${dir}/script`);
  return script !== null && script.endsWith(`/${HOTPLUG_SCRIPT}`);
}
