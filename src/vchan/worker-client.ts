// The main thread's handle of a vchan worker: one task at a time, its result as a promise, and the flags that
// reach it while it blocks. The worker is made by whoever knows its entry file (cmd/).
import { closeSync } from "node:fs";
import { XentoolError } from "../core/errors.ts";
import type { SpawnWorker } from "../core/worker.ts";
import { check, shim } from "../native/shim.ts";
import { VchanControl } from "./control.ts";
import type { VchanMessage, VchanReply, VchanResults, VchanTaskOf, VchanTask } from "./worker-protocol.ts";

const ENDED = "the vchan worker was ended";

export class VchanWorker {
  readonly control: VchanControl;
  readonly #worker: Worker;
  readonly #wakeFd: number;
  readonly #pending = new Map<number, (reply: VchanReply) => void>();
  #nextId = 1;
  #closed = false;

  constructor(spawn: SpawnWorker) {
    this.#wakeFd = check(shim.xt_eventfd(), "make an eventfd");
    this.control = VchanControl.create(this.#wakeFd);
    this.#worker = spawn();
    this.#worker.addEventListener("message", (event: MessageEvent<VchanReply>) => this.#receive(event.data));
    this.#worker.addEventListener("error", (event) => this.#fail("bug", event.message));
  }

  /** Runs a task; fails with the error that the worker met. */
  request<Op extends VchanTask["op"]>(task: VchanTaskOf<Op>): Promise<VchanResults[Op]> {
    if (this.#closed) return Promise.reject(new XentoolError("cancelled", ENDED));
    const id = this.#nextId++;
    const message: VchanMessage = { kind: "vchan", id, control: this.control.handle, task };
    return new Promise((resolve, reject) => {
      this.#pending.set(id, ({ result, error }) => {
        if (error === undefined) resolve(result as VchanResults[Op]);
        else reject(new XentoolError(error.kind, error.message, error.context));
      });
      this.#worker.postMessage(message);
    });
  }

  /** Ends the worker, whatever it does. What it held of the platform goes with the process. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#worker.terminate();
    this.#fail("cancelled", ENDED);
    closeSync(this.#wakeFd);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #receive(reply: VchanReply): void {
    const settle = this.#pending.get(reply.id);
    this.#pending.delete(reply.id);
    settle?.(reply);
  }

  #fail(kind: "bug" | "cancelled", message: string): void {
    const error = { kind, message, context: {} };
    for (const [id, settle] of this.#pending) settle({ kind: "vchan", id, error });
    this.#pending.clear();
  }
}
