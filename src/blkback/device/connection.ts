// One connection of a device to its guest, seen from the control plane: has its planes serve the rings, learns when
// they do, tells them to stop, and knows when everything has been released. The planes of a connection end together.
import { closeSync } from "node:fs";
import { dialServer, NO_CONNECTION } from "../../block/targets/nbd/dial.ts";
import { describeError, XentoolError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import { Plane, type SpawnWorker } from "../../plane/plane.ts";
import { asError } from "../../plane/protocol.ts";
import type { Image } from "../../block/image.ts";
import type { Dial } from "../../block/image/opened.ts";
import type { PlatformDescriptor } from "../../platform/platform.ts";
import type { Unwatch } from "../../xenstore/client.ts";
import type { BackendDirectory } from "./backend-directory.ts";
import { BlkbackControl, type StopOrder } from "../data-plane/blkback-control.ts";
import type { BlkbackOrder, BlkbackReport, Held } from "../data-plane/blkback-orders.ts";
import type { RateKeys } from "../limits/rate-keys.ts";
import type { DiskRates } from "../limits/rates.ts";
import { closeSharedDisk } from "../data-plane/shared-disk.ts";

const logger = moduleLogger("blkback");

export type OnHeld = (held: Held) => void;

/** The part of their order that all planes of a connection have in common. */
export type ConnectionOrder = Omit<BlkbackOrder["order"], "platform" | "shared" | "seat">;

export class DiskConnection {
  /** Set once it has stopped: why some of the guest's writes may not be on the disk. */
  lost: string | undefined;
  /** Resolves when the rings are mapped and served; rejects with the reason if that failed. */
  readonly connected: Promise<void>;
  /** Resolves once all planes have released everything, with the reason if one stopped by itself. */
  readonly stopped: Promise<XentoolError | undefined>;
  /** By plane. What is for one only is for the first: then there are no others. */
  readonly #controls: readonly [BlkbackControl, ...BlkbackControl[]];
  /** Whether somebody else's server has the image. */
  readonly #hasServer: boolean;
  #failure: XentoolError | undefined;
  #whyNotDialled: string | undefined;
  #isStopping = false;
  #isOver = false;

  /**
   * A plane for each of `platforms`, which is how that one opens the platform. Throws what `spawnWorker` throws, and
   * `io` when no descriptor is left. `onHeld`: the disk waits for the image's server, or no longer. `dial` begins a
   * connection to that, if we cannot. What is `lent` to the planes is moved here, to be closed when all is over.
   */
  constructor(
    spawnWorker: SpawnWorker,
    order: ConnectionOrder,
    platforms: readonly PlatformDescriptor[],
    rates: RateKeys,
    onHeld: OnHeld,
    dial?: Dial,
    lent?: DisposableStack,
  ) {
    this.#hasServer = order.image.kind === "nbd";
    using made = new DisposableStack();
    const shared = made.adopt(rates.share(platforms.length), closeSharedDisk);
    const planes = platforms.map(() => made.use(new Plane("blkback", spawnWorker)));
    const [first, ...others] = planes.map(({ control }) => new BlkbackControl(control));
    this.#controls = [first, ...others];
    this.limit(rates.rates);
    this.resize(order.disk.sectors512);
    const connected = Promise.withResolvers<void>();
    this.connected = connected.promise;
    this.connected.catch(() => {});
    let waitedFor = planes.length;
    const hear = (report: BlkbackReport): void => {
      if (report.type === "connected") {
        if (--waitedFor === 0) connected.resolve();
      } else if (report.type === "dial") void this.#dial(order.image, report.anew, dial);
      else if (!this.#isStopping) onHeld(report);
    };
    const broken = (error: XentoolError): void => this.#ended(error);
    const ends = planes.map((plane, seat) => {
      const end = plane.carryOut<BlkbackOrder>({ ...order, platform: platforms[seat], shared, seat }, hear);
      return end.then(({ failure, lost }) => this.#ended(failure && asError(failure), lost), broken);
    });
    made.use(lent?.move());
    const kept = made.move();
    this.stopped = Promise.all(ends).then(() => {
      connected.reject(this.#failure ?? new XentoolError("cancelled", "stopped before it was connected"));
      this.#isOver = true;
      closeDialled(first.takeDialled());
      kept.dispose();
      return this.#failure;
    });
  }

  /**
   * Has the planes complete the operations they have started, flush if the guest has let go, and release everything.
   * The last flush takes as long as the image needs. But when the device goes meanwhile, nobody is left for whom to
   * wait for a server that is silent: it is given up soon, and what may be lost is said.
   */
  async stop(how: StopOrder, directory: BackendDirectory): Promise<void> {
    this.#isStopping = true;
    for (const control of this.#controls) control.stop(how);
    const watching = how === "close" && this.#hasServer ? this.#hurryWithout(directory) : undefined;
    await this.stopped;
    // Should xenstore be gone, so is the watch.
    await (await watching)?.().catch(() => {});
  }

  /** Without xenstore nobody notices, and the wait for the server is as long as ever. */
  async #hurryWithout(directory: BackendDirectory): Promise<Unwatch | undefined> {
    try {
      return await directory.whenGone(() => this.#controls[0].hurry());
    } catch (error) {
      logger.warn(describeError(error));
      return undefined;
    }
  }

  limit(rates: DiskRates): void {
    for (const control of this.#controls) control.rates = rates;
  }

  /** Changes the disk's size from the next batch on. */
  resize(sectors512: number): void {
    for (const control of this.#controls) control.sectors512 = sectors512;
  }

  /** A plane has released everything. If it stopped by itself, the others are to do so, as it has. */
  #ended(failure?: XentoolError, lost?: string): void {
    this.lost ??= lost;
    if (failure === undefined) return;
    this.#failure ??= failure;
    if (this.#isStopping) return;
    this.#isStopping = true;
    for (const control of this.#controls) control.stop(failure.kind === "protocol" ? "close" : "leave");
  }

  /** Begins a connection to the image's server. */
  async #dial(image: Image, anew: boolean, dial?: Dial): Promise<void> {
    if (image.kind !== "nbd") return;
    const begin = dial === undefined ? dialServer(image.address) : dial(anew);
    const result = await begin.catch((error: unknown) => this.#notDialled(error));
    if (this.#isOver) closeDialled(result);
    else this.#controls[0].dialled(result);
  }

  /** The plane asks again. */
  #notDialled(error: unknown): number {
    const why = describeError(error);
    if (why !== this.#whyNotDialled) logger.warn(`no connection to the image's server: ${why}`);
    this.#whyNotDialled = why;
    return NO_CONNECTION;
  }
}

function closeDialled(result: number | undefined): void {
  if (result !== undefined && result >= 0) closeSync(result);
}
