// The data-plane worker of one frontend: opens what it shares with the backend, waits for the word that the
// backend serves it, does its job, and keeps everything until the backend has let go. It blocks in one
// place, so its orders come through FrontControl, not through messages.
import { describeError, kindOf, type ErrorKind } from "../core/errors.ts";
import { configureLogging } from "../core/log.ts";
import { openPlatform } from "../platform/open.ts";
import type { PlatformDescriptor } from "../platform/platform.ts";
import { ABI_X86_32, ABI_X86_64, type BlkifAbi } from "../protocol/blkif.ts";
import { Bench, type BenchOptions, type BenchResult } from "./bench.ts";
import { COMMAND_RELEASE, COMMAND_RUN, FrontControl, type ControlHandle } from "./control.ts";
import { FrontDevice, type FrontDeviceOptions, type RingAddress } from "./device.ts";
import { NbdServer } from "./nbd-server.ts";
import { FrontQueue } from "./queue.ts";

/** What the worker does with the disk. */
export type BlkfrontJob =
  | { readonly type: "nbd"; readonly listener: number; readonly exportName: string }
  | { readonly type: "bench"; readonly options: BenchOptions };

/** The order that starts a worker. Structured-cloneable. */
export interface BlkfrontOrder extends Omit<FrontDeviceOptions, "abi"> {
  readonly kind: "blkfront";
  readonly name: string;
  readonly verbosity: number;
  readonly platform: PlatformDescriptor;
  readonly abi: BlkifAbi["name"];
  readonly devid: number;
  readonly maxIndirectSegments: number;
  readonly control: ControlHandle;
  readonly job: BlkfrontJob;
}

export type BlkfrontReport =
  /** The ring can be offered to the backend. */
  | { readonly type: "shared"; readonly ring: RingAddress }
  /** The job is over; `failure`: because the backend broke the protocol. */
  | {
      readonly type: "finished";
      readonly failure: string | undefined;
      readonly bench: BenchResult | undefined;
    }
  | { readonly type: "failed"; readonly kind: ErrorKind; readonly message: string }
  /** Everything is given back. The last report, whatever came before. */
  | { readonly type: "released" };

/** Runs in the worker until released. Reports; never throws. */
export function runBlkfrontWorker(order: BlkfrontOrder, report: (message: BlkfrontReport) => void): void {
  configureLogging(order.verbosity, `xentool: ${order.name}`);
  try {
    serve(order, report);
  } catch (error) {
    report(failureOf(error));
  }
  report({ type: "released" });
}

function failureOf(error: unknown): BlkfrontReport {
  return { type: "failed", kind: kindOf(error), message: describeError(error) };
}

/** Everything opened is closed in the reverse order, whatever happens. */
function serve(order: BlkfrontOrder, report: (message: BlkfrontReport) => void): void {
  using cleanup = new DisposableStack();
  const abi = order.abi === "x86_32" ? ABI_X86_32 : ABI_X86_64;
  const control = new FrontControl(order.control);
  const platform = cleanup.adopt(openPlatform(order.platform), (it) => it.close());
  const device = cleanup.adopt(FrontDevice.open(platform, { ...order, abi }), (it) => it.close());
  report({ type: "shared", ring: device.address });
  control.await(COMMAND_RUN);
  try {
    report(perform(order, device, control));
  } catch (error) {
    report(failureOf(error));
  }
  control.await(COMMAND_RELEASE);
}

/** Does the job until it is over or `control` says stop, which may have been said already. */
function perform(order: BlkfrontOrder, device: FrontDevice, control: FrontControl): BlkfrontReport {
  const { ring, pool, channels, address } = device;
  const { job, devid, maxIndirectSegments } = order;
  const tags = ring.slots;
  const { port } = address;
  const queue = new FrontQueue({ ring, pool, channels, port, handle: devid, maxIndirectSegments, tags });
  let bench: BenchResult | undefined;
  if (job.type === "nbd") serveNbd(queue, tags, control, job);
  else if (control.command === COMMAND_RUN) bench = new Bench(queue, control.disk, job.options).run(control);
  return { type: "finished", failure: queue.failure, bench };
}

function serveNbd(
  queue: FrontQueue,
  tags: number,
  control: FrontControl,
  job: BlkfrontJob & { readonly type: "nbd" },
): void {
  const server = new NbdServer(queue, tags, control, job.listener, job.exportName);
  try {
    server.run();
  } finally {
    server.close();
  }
}
