// One connection of a device to its guest, seen from the control plane: starts the data-plane worker, hears
// that it connected, tells it to stop, and knows when everything is given back.
import type { SpawnWorker } from "../core/worker.ts";
import { XentoolError } from "../core/errors.ts";
import { check, shim } from "../native/shim.ts";
import { closeSync } from "node:fs";
import {
  CONTROL_SECTORS_HIGH,
  CONTROL_SECTORS_LOW,
  CONTROL_STOP,
  CONTROL_WORDS,
  type BlkbackOrder,
  type BlkbackReport,
  type StopOrder,
} from "./worker.ts";

export class QueueConnection {
  /** Resolves once the worker has given everything back, with the reason when it stopped by itself. */
  readonly stopped: Promise<XentoolError | undefined>;
  /** Once it has stopped: why what the guest wrote may not be on the disk. */
  lost: string | undefined;
  readonly #worker: Worker;
  readonly #control: Int32Array;
  readonly #wakeFd: number;
  readonly #connected = Promise.withResolvers<void>();
  #over = false;

  constructor(spawnWorker: SpawnWorker, order: Omit<BlkbackOrder, "control" | "wakeFd">) {
    const shared = new SharedArrayBuffer(CONTROL_WORDS * 4);
    this.#control = new Int32Array(shared);
    this.#storeSectors(order.limits.sectors512);
    this.#wakeFd = check(shim.xt_eventfd(), "make an eventfd");
    this.#connected.promise.catch(() => {});
    try {
      this.#worker = spawnWorker();
    } catch (error) {
      closeSync(this.#wakeFd);
      throw error;
    }
    const stopped = Promise.withResolvers<XentoolError | undefined>();
    const end = (error: XentoolError | undefined): void => {
      if (this.#over) return;
      this.#over = true;
      this.#connected.reject(error ?? new XentoolError("cancelled", "stopped before it was connected"));
      this.#worker.terminate();
      closeSync(this.#wakeFd);
      stopped.resolve(error);
    };
    this.#worker.onmessage = (event: MessageEvent<BlkbackReport>) => {
      const message = event.data;
      if (message.type === "connected") this.#connected.resolve();
      else if (message.type === "failed") end(new XentoolError(message.kind, message.message));
      else {
        this.lost = message.lost;
        end(message.failure === undefined ? undefined : new XentoolError("protocol", message.failure));
      }
    };
    this.#worker.onerror = (event) =>
      end(new XentoolError("bug", `the data-plane worker died: ${event.message}`));
    this.#worker.addEventListener("close", () =>
      end(new XentoolError("bug", "the data-plane worker ended without a word")),
    );
    this.stopped = stopped.promise;
    this.#worker.postMessage({ ...order, control: shared, wakeFd: this.#wakeFd } satisfies BlkbackOrder);
  }

  /** Resolves when the ring is mapped and served; rejects with the reason when that failed. */
  get connected(): Promise<void> {
    return this.#connected.promise;
  }

  /** Has the worker complete what it has started, flush if the guest has let go, and give everything back. */
  async stop(how: StopOrder): Promise<void> {
    Atomics.store(this.#control, CONTROL_STOP, how);
    this.#wake();
    await this.stopped;
  }

  /** The disk has another size from the next batch on. */
  resize(sectors512: number): void {
    this.#storeSectors(sectors512);
  }

  #wake(): void {
    if (!this.#over) shim.xt_eventfd_signal(this.#wakeFd);
  }

  #storeSectors(sectors512: number): void {
    Atomics.store(this.#control, CONTROL_SECTORS_LOW, sectors512 | 0);
    Atomics.store(this.#control, CONTROL_SECTORS_HIGH, Math.floor(sectors512 / 2 ** 32));
  }
}
