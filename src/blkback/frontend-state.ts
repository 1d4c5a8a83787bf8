// The state that a frontend's directory tells. It is the guest's: it may be gone, or be kept from us.
import { parseXenbusState, type XenbusState } from "../protocol/xenbus.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { errnoOf } from "../xenstore/errors.ts";
import { frontendDir, type DeviceAddress } from "./address.ts";

/** Unknown: the guest, or its directory, is gone. A driver domain may lose the right to look then. */
export async function readFrontendState(xenstore: Xenstore, address: DeviceAddress): Promise<XenbusState> {
  const text = await xenstore.tryRead(`${frontendDir(address)}/state`).catch((error: unknown) => {
    if (errnoOf(error) === "EACCES") return null;
    throw error;
  });
  return parseXenbusState(text);
}
