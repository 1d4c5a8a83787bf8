// The statistics of one device, from its server's side. What the server learns before there is a page is written into
// it when it is made.
import { existsSync } from "node:fs";
import { describeError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import { XenbusState } from "../../protocol/xenbus.ts";
import { describeDevice, type DeviceAddress } from "../address.ts";
import { UNLIMITED_DISK, type DiskRates } from "../limits/rates.ts";
import { removeWriteLog } from "../data-plane/server-line.ts";
import { StatsPage, statsPath } from "./stats.ts";

const logger = moduleLogger("blkback");

export class ServedStats {
  readonly path: string;
  readonly #dir: string;
  readonly #address: DeviceAddress;
  #page: StatsPage | undefined;
  #state: XenbusState = XenbusState.Initialising;
  #rates = UNLIMITED_DISK;

  constructor(dir: string, address: DeviceAddress) {
    this.#dir = dir;
    this.#address = address;
    this.path = statsPath(dir, address.frontend, address.devid);
  }

  /** Throws `environment` when there is no room for the page. */
  open(): void {
    // Somebody may have removed the file; without it no data plane could begin.
    if (this.#page !== undefined && existsSync(this.path)) return;
    this.#page?.close();
    this.#page = undefined;
    this.#page = StatsPage.create(this.#dir, this.#address.frontend, this.#address.devid);
    this.#page.state = this.#state;
    this.#page.rates = this.#rates;
  }

  /** Opens the page, and counts a connection of up to `queueCount` queues. */
  connecting(queueCount: number): void {
    this.open();
    this.#page?.connecting(queueCount);
  }

  set state(state: XenbusState) {
    this.#state = state;
    if (this.#page !== undefined) this.#page.state = state;
  }

  set rates(rates: DiskRates) {
    this.#rates = rates;
    if (this.#page !== undefined) this.#page.rates = rates;
  }

  /** Removes the log of writes, because nobody will go on with the disk. Never throws. */
  removeWriteLog(): void {
    try {
      removeWriteLog(this.path);
    } catch (error) {
      logger.warn(`${describeDevice(this.#address)}: ${describeError(error)}`);
    }
  }

  /** Removes the page. Never throws: nothing depends on the file. */
  remove(): void {
    try {
      this.#page?.remove();
    } catch (error) {
      logger.warn(`${describeDevice(this.#address)}: ${describeError(error)}`);
    }
  }
}
