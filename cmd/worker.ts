// Entry point of every data-plane worker: the first message is its order, and what it reports goes back as
// messages. Nothing else lives here, because coverage cannot see into workers.
import "./lib/standard-error.ts";
import { runBlkbackWorker, type BlkbackOrder } from "../src/blkback/worker.ts";
import { runBlkfrontWorker, type BlkfrontOrder } from "../src/blkfront/worker.ts";
import { runVchanWorker } from "../src/vchan/worker.ts";
import type { VchanMessage } from "../src/vchan/worker-protocol.ts";

declare const self: Worker;

type Order = BlkbackOrder | BlkfrontOrder | VchanMessage;

self.onmessage = ({ data }: MessageEvent<Order>): void => {
  const report = (message: unknown): void => self.postMessage(message);
  switch (data.kind) {
    case "blkback":
      return runBlkbackWorker(data, report);
    case "blkfront":
      return runBlkfrontWorker(data, report);
    case "vchan":
      return runVchanWorker(data, report);
  }
};
