// A guest that means no good: writes states in any order, values that are none, and lies about its ring, and then
// wants its disk like anybody else, detached and attached again by the toolstack.
import { join } from "node:path";
import { writeFileSync } from "node:fs";
import { frontendDir, type DeviceAddress } from "../../src/blkback/address.ts";
import { createDevice, destroyDevice } from "../../src/blkback/toolstack.ts";
import { toDomid } from "../../src/core/types.ts";
import { HandmadeGuest } from "./blk-guest.ts";
import type { Ground } from "./takeover-world.ts";

const KEYS = [
  "ring-ref",
  "ring-ref0",
  "event-channel",
  "protocol",
  "ring-page-order",
  "multi-queue-num-queues",
  "queue-0/ring-ref",
  "queue-1/event-channel",
  "feature-persistent",
  "state",
];
const VALUES = [
  "",
  "-1",
  "0",
  "1",
  "2",
  "5",
  "9999",
  "4000000000",
  "99999999999999999999",
  "1e3",
  "0x10",
  " 1",
  "abc",
  "x86_32-abi",
  "\u001b[2J",
  "\u0000",
  "a".repeat(2000),
  null,
];
const IMAGE_BYTES = 64 << 10;
const SECTOR = 8;
/** Its servers are killed while it waits, one after the other. */
const PATIENCE_MS = 60_000;

export class Mischief {
  /** What it did so far. */
  readonly done = { flaps: 0, oddValues: 0, lies: 0, reconnects: 0, attachments: 0 };
  readonly #ground: Ground;
  readonly #address: DeviceAddress;
  readonly #image: string;

  constructor(ground: Ground, domid: number) {
    this.#ground = ground;
    this.#address = { backend: toDomid(0), kind: "vbd", frontend: toDomid(domid), devid: 51728 };
    this.#image = join(ground.dir, `${domid}.img`);
    writeFileSync(this.#image, new Uint8Array(IMAGE_BYTES).fill(0x77));
  }

  /** Goes on until `enough`; fails when it does not get its disk back. */
  async run(enough: () => boolean): Promise<void> {
    await this.#ground.host.createDomain(this.#address.frontend);
    while (!enough()) await this.#attachment();
    await this.#ground.host.destroyDomain(this.#address.frontend);
  }

  /** From an attach to a detach. */
  async #attachment(): Promise<void> {
    const { host, xenstore, random } = this.#ground;
    const device = { address: this.#address, readOnly: false, params: this.#image } as const;
    await createDevice(xenstore, { ...device, deviceType: "disk" });
    const guest = await HandmadeGuest.start(host, this.#address);
    guest.patienceMs = PATIENCE_MS;
    try {
      await guest.connect();
      await this.#expectDisk(guest);
      for (let reconnects = random.below(4); reconnects > 0; reconnects--) await this.#reconnect(guest);
      for (let tricks = random.below(40); tricks > 0; tricks--) await this.#trick(guest);
    } finally {
      guest.close();
      await destroyDevice(xenstore, this.#address);
    }
    this.done.attachments++;
  }

  async #expectDisk(guest: HandmadeGuest): Promise<void> {
    const read = await guest.read(SECTOR);
    if (typeof read === "number" || !read.every((byte) => byte === 0x77))
      throw new Error(`the disk of the guest that means no good was read as ${String(read).slice(0, 40)}`);
  }

  async #reconnect(guest: HandmadeGuest): Promise<void> {
    await guest.setState(5);
    await guest.setState(6);
    await guest.untilBackend(6);
    await guest.setState(1);
    await guest.connect();
    await this.#expectDisk(guest);
    this.done.reconnects++;
  }

  async #trick(guest: HandmadeGuest): Promise<void> {
    const { random } = this.#ground;
    const way = random.below(10);
    if (way < 6) {
      this.done.flaps++;
      return guest.setState(1 + random.below(8));
    }
    if (way < 9) {
      this.done.oddValues++;
      const path = `${frontendDir(this.#address)}/${random.pick(KEYS)}`;
      const value = random.pick(VALUES);
      if (value !== null) return guest.xenstore.write(path, value);
      if (await guest.xenstore.exists(path)) await guest.xenstore.rm(path);
      return;
    }
    this.done.lies++;
    guest.lie(random.below(2 ** 32));
  }
}
