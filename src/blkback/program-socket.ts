// Where the program that serves a device's image to us listens, beside the device's lock.
import { join } from "node:path";
import type { DeviceAddress } from "./address.ts";

export function programSocket(
  statsDir: string,
  { frontend, devid }: Pick<DeviceAddress, "frontend" | "devid">,
): string {
  return join(statsDir, `${frontend}-${devid}.nbd`);
}
