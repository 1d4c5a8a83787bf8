// The plane of a frontend: opens what it shares with the backend, waits until the backend serves it, does its job,
// and keeps everything until the backend has let go.
import { XentoolError } from "../core/errors.ts";
import { configureLogging } from "../core/log.ts";
import type { CarryOut } from "../plane/answer.ts";
import { failureOf } from "../plane/protocol.ts";
import { openPlatform } from "../platform/open.ts";
import { ABI_X86_32, ABI_X86_64 } from "../protocol/blkif.ts";
import { Bench, type BenchResult } from "./bench.ts";
import { FrontControl } from "./blkfront-control.ts";
import type { BlkfrontJob, BlkfrontOrder, BlkfrontReport } from "./blkfront-orders.ts";
import { FrontDevice } from "./device.ts";
import { NbdServer } from "./nbd-server.ts";
import { FrontDataPlane } from "./data-plane.ts";
import { Verify } from "./verify.ts";

/** Serves until released. Everything is closed in reverse order, whatever happens. */
export const carryOutBlkfrontOrder: CarryOut<BlkfrontOrder> = (order, page, report) => {
  configureLogging(order.verbosity, `xentool: ${order.name}`);
  using cleanup = new DisposableStack();
  const abi = order.abi === "x86_32" ? ABI_X86_32 : ABI_X86_64;
  const control = new FrontControl(page);
  const platform = cleanup.adopt(openPlatform(order.platform), (it) => it.close());
  const device = cleanup.adopt(FrontDevice.open(platform, { ...order, abi }), (it) => it.close());
  report({ type: "shared", rings: device.addresses });
  control.awaitDisk();
  report(perform(order, device, control));
  control.awaitRelease();
};

/** Does the job until it is over or `control` stops it, possibly before it started. */
function perform(order: BlkfrontOrder["order"], device: FrontDevice, control: FrontControl): BlkfrontReport {
  try {
    return { type: "finished", failure: undefined, bench: doJob(order, device, control) };
  } catch (error) {
    return { type: "finished", failure: failureOf(error), bench: undefined };
  }
}

function doJob(
  order: BlkfrontOrder["order"],
  device: FrontDevice,
  control: FrontControl,
): BenchResult | undefined {
  const { rings, pool, channels, slots: tags } = device;
  const { job, devid, maxIndirectSegments } = order;
  const plane = new FrontDataPlane({ rings, pool, channels, handle: devid, maxIndirectSegments, tags });
  let bench: BenchResult | undefined;
  if (job.type === "nbd") serveNbd(plane, tags, control, job);
  else if (!control.runs) return undefined;
  else if (job.type === "verify") new Verify(plane, control.disk, job.options).run(control);
  else bench = new Bench(plane, control.disk, job.options).run(control);
  if (plane.failure !== undefined) throw new XentoolError("protocol", plane.failure);
  return bench;
}

function serveNbd(
  plane: FrontDataPlane,
  tags: number,
  control: FrontControl,
  job: BlkfrontJob & { readonly type: "nbd" },
): void {
  const server = new NbdServer(plane, tags, control, job.listener, job.exportName);
  try {
    server.run();
  } finally {
    server.close();
  }
}
