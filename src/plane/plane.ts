// The control side's handle for a plane: a thread that blocks in one place and moves data. Orders are sent as
// messages while it is idle, and through the control page while it blocks. If a plane dies or vanishes, its order
// fails.
import { XentoolError } from "../core/errors.ts";
import { ControlPage } from "./control-page.ts";
import { asError, type OrderMessage, type OrderType, type PlaneMessage } from "./protocol.ts";

/**
 * Creates the thread of a plane. Its file must be an entry point of the executable, so cmd/ creates it and hands
 * this function down; the `role` in the first order decides what the thread becomes.
 */
export type SpawnWorker = () => Worker;

interface Pending {
  readonly onReport: (report: unknown) => void;
  readonly settle: (result: unknown, error?: XentoolError) => void;
}

/** Those that are not over. */
const planes = new Set<Plane>();

/**
 * Whether every plane with an order has looked at its control page since the last time we asked; asks them anew.
 * Call it seconds apart. A plane of `--engine sync` also fails to look while its image's storage keeps it waiting.
 */
export function planesAnswer(): boolean {
  return [...planes].map((plane) => plane.answers()).every(Boolean);
}

export class Plane implements Disposable {
  readonly control: ControlPage;
  readonly #role: string;
  readonly #worker: Worker;
  readonly #pending = new Map<number, Pending>();
  #nextId = 1;
  #over: XentoolError | undefined;

  /** Throws what `spawnWorker` throws, and `io` when no descriptor is left. */
  constructor(role: string, spawnWorker: SpawnWorker) {
    this.#role = role;
    this.control = ControlPage.create();
    try {
      this.#worker = spawnWorker();
    } catch (error) {
      this.control.close();
      throw error;
    }
    planes.add(this);
    this.#worker.addEventListener("message", ({ data }: MessageEvent<PlaneMessage>) => this.#receive(data));
    this.#worker.addEventListener("error", ({ message }) =>
      this.#end(new XentoolError("bug", `the data plane died: ${message}`)),
    );
    this.#worker.addEventListener("close", () =>
      this.#end(new XentoolError("bug", "the data plane ended without a word")),
    );
  }

  /**
   * Has the plane carry out an order and returns its result. Rejects with the error that the plane met, or with
   * `bug` when it died.
   */
  async carryOut<Type extends OrderType>(
    order: Type["order"],
    onReport: (report: Type["report"]) => void = () => {},
  ): Promise<Type["result"]> {
    if (this.#over !== undefined) throw this.#over;
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<Type["result"]>();
    const settle = (result: unknown, error?: XentoolError): void =>
      error === undefined ? resolve(result) : reject(error);
    this.#pending.set(id, { onReport, settle });
    const message: OrderMessage = { role: this.#role, id, control: this.control.handle, order };
    this.#worker.postMessage(message);
    return promise;
  }

  /** See `planesAnswer`. Without an order, the thread waits for a message, and has nothing to look at. */
  answers(): boolean {
    if (this.#pending.size === 0) return true;
    const { isDrained } = this.control;
    this.control.wake();
    return isDrained;
  }

  /** Ends the thread, whatever it is doing: what it held of the platform is released with the process. */
  close(): void {
    this.#end(new XentoolError("cancelled", "the data plane was ended"));
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #receive(message: PlaneMessage): void {
    const pending = this.#pending.get(message.id);
    if (pending === undefined) return;
    if (message.type === "report") {
      pending.onReport(message.report);
      return;
    }
    this.#pending.delete(message.id);
    if (message.type === "done") {
      pending.settle(message.result);
    } else {
      pending.settle(undefined, asError(message.failure));
    }
  }

  #end(error: XentoolError): void {
    if (this.#over !== undefined) return;
    this.#over = error;
    planes.delete(this);
    this.#worker.terminate();
    this.control.close();
    for (const { settle } of this.#pending.values()) settle(undefined, error);
    this.#pending.clear();
  }
}
