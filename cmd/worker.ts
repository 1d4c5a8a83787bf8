// Entry point of every data-plane worker: the first message is its order, and what it reports goes back as
// messages. Nothing else lives here, because coverage cannot see into workers.
import "./lib/standard-error.ts";
import { describeError, kindOf } from "../src/core/errors.ts";
import type { BlkbackOrder, BlkbackReport } from "../src/blkback/worker.ts";
import type { BlkfrontOrder, BlkfrontReport } from "../src/blkfront/worker.ts";
import type { VchanMessage, VchanReply } from "../src/vchan/worker-protocol.ts";

declare const self: Worker;

type Order = BlkbackOrder | BlkfrontOrder | VchanMessage;
type Report = BlkbackReport | BlkfrontReport | VchanReply;

function report(message: Report): void {
  self.postMessage(message);
}

/** What the order needs is loaded only now, so that a host which lacks something for it can be reported. */
async function obey(order: Order): Promise<void> {
  switch (order.kind) {
    case "blkback":
      return (await import("../src/blkback/worker.ts")).runBlkbackWorker(order, report);
    case "blkfront":
      return (await import("../src/blkfront/worker.ts")).runBlkfrontWorker(order, report);
    case "vchan":
      return (await import("../src/vchan/worker.ts")).runVchanWorker(order, report);
  }
}

function refuse(order: Order, error: unknown): void {
  const failure = { kind: kindOf(error), message: describeError(error) };
  if (order.kind === "vchan") report({ kind: "vchan", id: order.id, error: { ...failure, context: {} } });
  else report({ type: "failed", ...failure });
  if (order.kind === "blkfront") report({ type: "released" });
}

self.onmessage = ({ data }: MessageEvent<Order>): void => {
  obey(data).catch((error: unknown) => refuse(data, error));
};
