// One connection of a device to its guest, seen from the control plane: has a plane serve the ring, learns when it
// does, tells it to stop, and knows when everything has been released.
import { closeSync } from "node:fs";
import { dialServer } from "../block/targets/nbd/dial.ts";
import { describeError, XentoolError } from "../core/errors.ts";
import { moduleLogger } from "../core/log.ts";
import { Plane, type SpawnWorker } from "../plane/plane.ts";
import { asError } from "../plane/protocol.ts";
import type { Image } from "../block/image.ts";
import type { LentDevices } from "../platform/platform.ts";
import type { Unwatch } from "../xenstore/client.ts";
import type { BackendDirectory } from "./backend-directory.ts";
import { BlkbackControl, type StopOrder } from "./blkback-control.ts";
import type { BlkbackOrder, BlkbackReport, Held } from "./blkback-orders.ts";
import type { DiskRates } from "./rates.ts";

const logger = moduleLogger("blkback");

export type OnHeld = (held: Held) => void;

/** Xen's devices for a connection of device `devid`; what is for that one only is closed with `until`. */
export type LendDevices = (devid: number, until: DisposableStack) => Promise<LentDevices>;

export class DiskConnection {
  /** Set once it has stopped: why some of the guest's writes may not be on the disk. */
  lost: string | undefined;
  /** Resolves when the ring is mapped and served; rejects with the reason if that failed. */
  readonly connected: Promise<void>;
  /** Resolves once the plane has released everything, with the reason if it stopped by itself. */
  readonly stopped: Promise<XentoolError | undefined>;
  readonly #control: BlkbackControl;
  /** Whether somebody else's server has the image. */
  readonly #hasServer: boolean;
  #isStopping = false;
  #isOver = false;

  /**
   * Throws what `spawnWorker` throws, and `io` when no descriptor is left. `onHeld`: the disk waits for the image's
   * server, or no longer. `dial` begins a connection to that, if we cannot. What is `lent` to the plane is moved here,
   * to be closed when that is over.
   */
  constructor(
    spawnWorker: SpawnWorker,
    order: BlkbackOrder["order"],
    rates: DiskRates,
    onHeld: OnHeld,
    dial?: () => Promise<number>,
    lent?: DisposableStack,
  ) {
    this.#hasServer = order.image.kind === "nbd";
    const plane = new Plane("blkback", spawnWorker);
    const kept = lent?.move();
    this.#control = new BlkbackControl(plane.control);
    this.#control.sectors512 = order.disk.sectors512;
    this.#control.rates = rates;
    const connected = Promise.withResolvers<void>();
    this.connected = connected.promise;
    this.connected.catch(() => {});
    const end = (error?: XentoolError): XentoolError | undefined => {
      connected.reject(error ?? new XentoolError("cancelled", "stopped before it was connected"));
      plane.close();
      this.#isOver = true;
      closeDialled(this.#control.takeDialled());
      kept?.dispose();
      return error;
    };
    const hear = (report: BlkbackReport): void => {
      if (report.type === "connected") connected.resolve();
      else if (report.type === "dial") void this.#dial(order.image, dial);
      else if (!this.#isStopping) onHeld(report);
    };
    this.stopped = plane.carryOut<BlkbackOrder>(order, hear).then(({ failure, lost }) => {
      this.lost = lost;
      return end(failure && asError(failure));
    }, end);
  }

  /**
   * Has the plane complete the operations it has started, flush if the guest has let go, and release everything. The
   * last flush takes as long as the image needs. But when the device goes meanwhile, nobody is left for whom to wait
   * for a server that is silent: it is given up soon, and what may be lost is said.
   */
  async stop(how: StopOrder, directory: BackendDirectory): Promise<void> {
    this.#isStopping = true;
    this.#control.stop(how);
    const watching = how === "close" && this.#hasServer ? this.#hurryWithout(directory) : undefined;
    await this.stopped;
    // Should xenstore be gone, so is the watch.
    await (await watching)?.().catch(() => {});
  }

  /** Without xenstore nobody can tell, and the server is waited for as long as ever. */
  async #hurryWithout(directory: BackendDirectory): Promise<Unwatch | undefined> {
    try {
      return await directory.whenGone(() => this.#control.hurry());
    } catch (error) {
      logger.warn(describeError(error));
      return undefined;
    }
  }

  limit(rates: DiskRates): void {
    this.#control.rates = rates;
  }

  /** Changes the disk's size from the next batch on. */
  resize(sectors512: number): void {
    this.#control.sectors512 = sectors512;
  }

  /** Begins a connection to the image's server. */
  async #dial(image: Image, dial?: () => Promise<number>): Promise<void> {
    if (image.kind !== "nbd") return;
    const result = await (dial === undefined ? dialServer(image.address) : dial());
    if (this.#isOver) closeDialled(result);
    else this.#control.dialled(result);
  }
}

function closeDialled(result: number | undefined): void {
  if (result !== undefined && result >= 0) closeSync(result);
}
