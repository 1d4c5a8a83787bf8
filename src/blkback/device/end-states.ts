// The states of both ends of a device, read from xenstore. The frontend's directory belongs to the guest: it may be
// gone, or we may not be allowed to read it.
import { parseXenbusState, type XenbusState } from "../../protocol/xenbus.ts";
import type { Xenstore } from "../../xenstore/client.ts";
import { nullIfDenied } from "../../xenstore/errors.ts";
import { backendDir, frontendDir, type DeviceAddress } from "../address.ts";
import { isInUse } from "./decide.ts";

export async function readBackendState(xenstore: Xenstore, address: DeviceAddress): Promise<XenbusState> {
  return parseXenbusState(await xenstore.tryRead(`${backendDir(address)}/state`));
}

/** Unknown: the guest or its directory is gone. A driver domain may lose the right to read it then. */
export async function readFrontendState(xenstore: Xenstore, address: DeviceAddress): Promise<XenbusState> {
  const state = xenstore.tryRead(`${frontendDir(address)}/state`);
  return parseXenbusState(await state.catch(nullIfDenied));
}

/** Whether the guest is still using a ring that a server, perhaps a dead one, has connected to. */
export async function isRingInUse(xenstore: Xenstore, address: DeviceAddress): Promise<boolean> {
  const [backend, frontend] = await Promise.all([
    readBackendState(xenstore, address),
    readFrontendState(xenstore, address),
  ]);
  return isInUse(backend, frontend);
}
