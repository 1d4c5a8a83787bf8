// One connection of a device to its guest, seen from the control plane: has a plane serve the ring, learns when it
// does, tells it to stop, and knows when everything has been released.
import { XentoolError } from "../core/errors.ts";
import { Plane, type SpawnWorker } from "../plane/plane.ts";
import { asError } from "../plane/protocol.ts";
import { BlkbackControl, type StopOrder } from "./blkback-control.ts";
import type { BlkbackOrder } from "./blkback-orders.ts";
import type { DiskRates } from "./rates.ts";

export class QueueConnection {
  /** Set once it has stopped: why some of the guest's writes may not be on the disk. */
  lost: string | undefined;
  /** Resolves when the ring is mapped and served; rejects with the reason if that failed. */
  readonly connected: Promise<void>;
  /** Resolves once the plane has released everything, with the reason if it stopped by itself. */
  readonly stopped: Promise<XentoolError | undefined>;
  readonly #control: BlkbackControl;

  /** Throws what `spawnWorker` throws, and `io` when no descriptor is left. */
  constructor(spawnWorker: SpawnWorker, order: BlkbackOrder["order"], rates: DiskRates) {
    const plane = new Plane("blkback", spawnWorker);
    this.#control = new BlkbackControl(plane.control);
    this.#control.sectors512 = order.limits.sectors512;
    this.#control.rates = rates;
    const connected = Promise.withResolvers<void>();
    this.connected = connected.promise;
    this.connected.catch(() => {});
    const end = (error?: XentoolError): XentoolError | undefined => {
      connected.reject(error ?? new XentoolError("cancelled", "stopped before it was connected"));
      plane.close();
      return error;
    };
    this.stopped = plane
      .carryOut<BlkbackOrder>(order, () => connected.resolve())
      .then(({ failure, lost }) => {
        this.lost = lost;
        return end(failure && asError(failure));
      }, end);
  }

  /** Has the plane complete the operations it has started, flush if the guest has let go, and release everything. */
  async stop(how: StopOrder): Promise<void> {
    this.#control.stop(how);
    await this.stopped;
  }

  limit(rates: DiskRates): void {
    this.#control.rates = rates;
  }

  /** Changes the disk's size from the next batch on. */
  resize(sectors512: number): void {
    this.#control.sectors512 = sectors512;
  }
}
