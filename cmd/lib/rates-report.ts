// A disk's limits in words.
import { describeDevice, type DeviceAddress } from "../../src/blkback/address.ts";
import type { DiskRates, Rate } from "../../src/blkback/limits/rates.ts";
import { vdevName } from "../../src/protocol/blkif.ts";
import { formatBytes, formatCount, print, printJson } from "./output.ts";

/** Prints the limits in force. */
export function printRates(address: DeviceAddress, rates: DiskRates, json: boolean): void {
  if (json) printJson({ domid: address.frontend, vdev: vdevName(address.devid), ...rates });
  else print(`${describeDevice(address)}: ${describeRates(rates) || "no limit"}`);
}

/** "500 IOPS, read 100 MiB/s, write 20 MiB/s"; empty if there is no limit. */
export function describeRates({ iops, bandwidth }: DiskRates): string {
  return [
    ...describeRate(iops, (count) => `${formatCount(count)} IOPS`, formatCount),
    ...describeRate(bandwidth, (bytes) => `${formatBytes(bytes)}/s`, formatBytes),
  ].join(", ");
}

function describeRate(
  { total, read, write, burst }: Rate,
  show: (perSecond: number) => string,
  showBurst: (amount: number) => string,
): string[] {
  const parts = [
    total === 0 ? "" : show(total),
    read === 0 ? "" : `read ${show(read)}`,
    write === 0 ? "" : `write ${show(write)}`,
    burst === 0 ? "" : `bursts of ${showBurst(burst)}`,
  ];
  return parts.filter((part) => part !== "");
}
