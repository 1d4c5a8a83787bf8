// What is to be done about a device that `watch` does not serve, by what xenstore says of it.
import { parseXenbusState, XenbusState } from "../../protocol/xenbus.ts";
import type { Xenstore } from "../../xenstore/client.ts";
import { backendDir, type DeviceAddress } from "../address.ts";
import { isInUse } from "../device/decide.ts";
import { readFrontendState } from "../device/end-states.ts";

export type Todo =
  | { readonly todo: "nothing" }
  /** Its toolstack waits for our 6. */
  | { readonly todo: "close" }
  /** `isOffered`: nobody would read why it cannot be served. */
  | { readonly todo: "serve"; readonly isOffered: boolean };

export async function lookAtUnserved(xenstore: Xenstore, address: DeviceAddress): Promise<Todo> {
  const read = (key: string): Promise<string | null> => xenstore.tryRead(`${backendDir(address)}/${key}`);
  const [stateText, online, hotplug, frontend] = await Promise.all([
    read("state"),
    read("online"),
    read("hotplug-status"),
    readFrontendState(xenstore, address),
  ]);
  const state = parseXenbusState(stateText);
  if (isInUse(state, frontend)) return { todo: "serve", isOffered: true };
  // Such a guest comes back, and its last server may have died while the guest was closing.
  const mayComeBack = online === "1" && frontend !== XenbusState.Unknown;
  if (!mayComeBack && state === XenbusState.Closing) return { todo: "close" };
  if (!mayComeBack && state === XenbusState.Closed) return { todo: "nothing" };
  if (state === XenbusState.Unknown || hotplug === "error") return { todo: "nothing" };
  // libxl asks only once whether a device is connected, and a guest may have begun to connect.
  return { todo: "serve", isOffered: state !== XenbusState.Initialising && hotplug === "connected" };
}
