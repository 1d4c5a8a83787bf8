// What becomes of the disks that a command serves: lines on stderr, or an object a line on stdout with --json.
import { describeDevice, type DeviceAddress } from "../../src/blkback/address.ts";
import { describeEvent, type DeviceEvent } from "../../src/blkback/device/device-events.ts";
import { priorityMark } from "../../src/core/line-priority.ts";
import { vdevName } from "../../src/protocol/blkif.ts";
import { printJson } from "./output.ts";
import type { CommandContext } from "./run-command.ts";

/** `more` follows the words. */
export function printEvent(address: DeviceAddress, event: DeviceEvent, json: boolean, more = ""): void {
  if (json) {
    const device = { domid: address.frontend, vdev: vdevName(address.devid) };
    const sizes =
      event.event === "resized" ? { sectorsBefore: event.before, sectorsOfImage: event.after } : {};
    printJson({ event: event.event, ...device, ...sizes }, true);
    return;
  }
  const { text, warns } = describeEvent(event);
  const mark = priorityMark(warns ? "warning" : "info");
  process.stderr.write(
    `${mark}xentool: ${warns ? "warning: " : ""}${describeDevice(address)}: ${text}${more}\n`,
  );
}

/** The events of the one disk of `blkback serve`. */
export class ServedDisk {
  readonly #address: DeviceAddress;
  readonly #image: string;
  readonly #context: CommandContext;
  readonly #patienceMs: number;
  #isOffered = false;
  #isWaiting = false;
  #last = "not offered yet";

  /** `patienceMs` is how long the guest has to let go once the command is to end. */
  constructor(address: DeviceAddress, image: string, context: CommandContext, patienceMs: number) {
    this.#address = address;
    this.#image = image;
    this.#context = context;
    this.#patienceMs = patienceMs;
  }

  /** One line about the disk as it is now. */
  get status(): string {
    return `${describeDevice(this.#address)}: ${this.#last}`;
  }

  readonly onEvent = (address: DeviceAddress, event: DeviceEvent): void => {
    this.#isWaiting = event.event === "waiting";
    this.#last = describeEvent(event).text;
    // The line about the offer says it as well.
    if (this.#isWaiting && !this.#isOffered) return;
    const { stop, json } = this.#context;
    const bound = `, for up to ${this.#patienceMs / 1000} s; Ctrl-C again leaves it`;
    printEvent(address, event, json, event.event === "closing" && stop.aborted ? bound : "");
  };

  /** A guest may connect now. */
  offered(): void {
    this.#isOffered = true;
    const { frontend, devid, kind } = this.#address;
    const image = this.#image;
    if (this.#context.json) {
      printJson({ event: "offered", domid: frontend, vdev: vdevName(devid), kind, image }, true);
      return;
    }
    const what = `offering ${image} as ${describeDevice(this.#address)}`;
    process.stderr.write(`xentool: ${what}${this.#isWaiting ? "; waiting for the guest" : ""}\n`);
  }
}
