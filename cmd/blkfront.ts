// `xentool blkfront`: uses a disk as a guest would, from user space: exports it over NBD, or benchmarks it.
import type { BenchOptions, BenchResult } from "../src/blkfront/bench.ts";
import type { Disk } from "../src/blkfront/handshake.ts";
import type { SessionEnd } from "../src/blkfront/session.ts";
import type { BlkfrontJob } from "../src/blkfront/blkfront-orders.ts";
import { DEFAULT_POOL_PAGES, LARGE_POOL_PAGES, MAX_QUEUES } from "../src/blkfront/bounds.ts";
import { RING_MAX_PAGE_ORDER } from "../src/protocol/ring.ts";
import { command, group, type ArgumentsOf } from "./lib/command.ts";
import { ASKED_JAIL } from "./lib/jail-option.ts";
import { choice, flag, number, text, wholeNumber } from "./lib/option.ts";
import type { Platform } from "../src/platform/platform.ts";
import type { CommandContext } from "./lib/run-command.ts";

const DEVICE_OPTIONS = {
  vdev: text("Our disk: xvdb, sda, 51728", { required: true, complete: "vdev" }),
  abi: choice(["x86_64", "x86_32"], "Layout of requests on the ring", { initial: "x86_64" }),
  queues: wholeNumber("Rings to spread requests over; fewer if the backend offers fewer", 1, MAX_QUEUES, {
    initial: 1,
  }),
  "ring-page-order": wholeNumber(
    "Rings of 2^N pages, N 0 to 4 (default: what the backend allows)",
    0,
    RING_MAX_PAGE_ORDER,
  ),
  take: flag("Take the disk away from whoever in this domain uses it, the kernel too"),
};
type DeviceArguments = ArgumentsOf<typeof DEVICE_OPTIONS>;

/** Connects to the disk and has a worker do `job`, until `stop` fires. */
async function useDisk(
  context: CommandContext,
  argv: DeviceArguments,
  job: BlkfrontJob,
  stop: AbortSignal,
  onConnected: (disk: Disk) => void,
  enterJail?: (platform: Platform) => void,
): Promise<SessionEnd> {
  const { choosePlatform } = await import("../src/platform/open.ts");
  const { Xenstore } = await import("../src/xenstore/client.ts");
  const { runSession } = await import("../src/blkfront/session.ts");
  const { parseVdev } = await import("../src/protocol/blkif.ts");
  const { XentoolError } = await import("../src/core/errors.ts");
  const { spawnWorker } = await import("./spawn-worker.ts");
  const devid = parseVdev(argv.vdev);
  if (devid === undefined)
    throw new XentoolError("usage", `--vdev: "${argv.vdev}" is not a disk name such as xvdb`);
  const order = argv.ringPageOrder;
  const wait = context.timeoutMs === undefined ? {} : { timeoutMs: context.timeoutMs };
  using platform = await choosePlatform({ platform: context.platform });
  using xenstore = await Xenstore.connect(platform, wait);
  const options = {
    devid,
    verbosity: context.verbosity,
    abi: argv.abi,
    wait,
    take: argv.take,
    enterJail: enterJail && (() => enterJail(platform)),
    queues: argv.queues,
    poolPages: job.type === "bench" ? LARGE_POOL_PAGES : DEFAULT_POOL_PAGES,
    ...(order !== undefined && { ringPageOrder: order }),
  };
  return await runSession(platform, xenstore, options, job, spawnWorker, stop, onConnected);
}

const TIMEOUT =
  "Seconds that xenstore may take to answer (default 5), and the backend at each step (default 10)";

const NBD_OPTIONS = {
  ...DEVICE_OPTIONS,
  socket: text("Path of the socket", { required: true, complete: "file" }),
  jail: ASKED_JAIL,
};

const nbd = command({
  name: "nbd",
  summary: "Export the disk as an NBD server on a unix socket, until the backend lets go or SIGTERM",
  options: NBD_OPTIONS,
  timeout: TIMEOUT,
  examples: [
    ["xentool blkfront nbd --vdev xvdb --socket /tmp/xvdb.sock", "export the disk; meanwhile, elsewhere:"],
    ["nbdinfo 'nbd+unix:///?socket=/tmp/xvdb.sock'", "what it is"],
    ["nbdcopy 'nbd+unix:///?socket=/tmp/xvdb.sock' copy.img", "its bytes"],
  ],
  run: async (argv, context) => {
    const { listenAt } = await import("../src/native/unix-listener.ts");
    const { enterExportJail } = await import("../src/blkfront/jail.ts");
    // Read before there is a socket: from now on a signal asks us to end, and the socket is removed.
    const { stop } = context;
    const listener = listenAt(argv.socket);
    try {
      const job = { type: "nbd", listener: listener.fd, exportName: argv.vdev } as const;
      const enterJail = (platform: Platform): void => {
        if (argv.jail !== "off") enterExportJail(argv.jail === "strict", platform.descriptor, argv.socket);
      };
      const onConnected = (disk: Disk): void => announce(context, argv, disk);
      const end = await useDisk(context, argv, job, stop, onConnected, enterJail);
      if (context.json) printLine({ event: "ended", reason: end.reason });
    } finally {
      listener.close();
    }
  },
});

function announce(context: CommandContext, argv: ArgumentsOf<typeof NBD_OPTIONS>, disk: Disk): void {
  const { vdev, socket } = argv;
  if (context.json) printLine({ event: "serving", vdev, socket, ...disk });
  else process.stderr.write(`xentool: serving ${vdev} at ${socket}\n`);
}

function printLine(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

const BENCH_OPTIONS = {
  ...DEVICE_OPTIONS,
  rw: choice(["read", "write", "randread", "randwrite", "randrw"], "Access pattern", { initial: "randread" }),
  bs: text("SIZE of each request: 4k, 1M", { initial: "4k" }),
  iodepth: wholeNumber("How many at a time", 1, 512, { initial: 32 }),
  runtime: number("Seconds", 0.001, 86_400, { initial: 5 }),
  ramp: number("Seconds of the same load before it is measured", 0, 86_400, { initial: 0 }),
};

const bench = command({
  name: "bench",
  summary: "Measure the disk; a pattern that writes destroys what is on it",
  options: BENCH_OPTIONS,
  timeout: TIMEOUT,
  examples: [
    ["xentool blkfront bench --vdev xvdb", "4k random reads, 32 at a time"],
    ["xentool blkfront bench --vdev xvdb --rw write --bs 1M --iodepth 4 --json", "for scripts"],
  ],
  run: async (argv, context) => {
    const { XentoolError } = await import("../src/core/errors.ts");
    const options = await benchOptions(argv);
    const job = { type: "bench", options } as const;
    const { reason, bench: result } = await useDisk(context, argv, job, context.stop, () => {});
    if (result === undefined && reason === "stopped")
      throw new XentoolError("cancelled", "stopped before there was anything to measure");
    if (result === undefined)
      throw new XentoolError("protocol", "the backend let go of the disk before there was a result");
    await printResult(context, argv.vdev, result);
    if (result.errors > 0)
      throw new XentoolError("io", `${result.errors} of the requests failed; the figures mean little`);
  },
});

async function benchOptions(argv: ArgumentsOf<typeof BENCH_OPTIONS>): Promise<BenchOptions> {
  const { requireSize } = await import("../src/core/sizes.ts");
  const blockBytes = requireSize("--bs", argv.bs, 1, 2 ** 30);
  return {
    pattern: argv.rw,
    blockBytes,
    depth: argv.iodepth,
    runtimeMs: argv.runtime * 1000,
    rampMs: argv.ramp * 1000,
  };
}

async function printResult(context: CommandContext, vdev: string, result: BenchResult): Promise<void> {
  const { formatBytes, formatCount, formatDuration, print, printJson } = await import("./lib/output.ts");
  const seconds = result.elapsedMs / 1000;
  const iops = (result.reads + result.writes) / seconds;
  const bytesPerSecond = result.bytes / seconds;
  const cpuPercent = ((result.cpuUserMs + result.cpuSystemMs) / result.elapsedMs) * 100;
  if (context.json) {
    printJson({ vdev, ...result, iops, bytesPerSecond, cpuPercent });
    return;
  }
  const { latencyUs } = result;
  const queues = result.queues === 1 ? "" : ` on ${result.queues} queues`;
  const lasting = (us: number): string => formatDuration(us * 1000);
  print(
    `${vdev}: ${result.pattern}, ${formatBytes(result.blockBytes)}, ${result.jobs} at a time${queues}, ${seconds.toFixed(1)} s`,
  );
  print(`  ${formatCount(iops)} IOPS, ${formatBytes(bytesPerSecond)}/s`);
  print(
    `  latency: median ${lasting(latencyUs.p50)}, 99 % ${lasting(latencyUs.p99)}, ` +
      `99.9 % ${lasting(latencyUs.p999)}, longest ${lasting(latencyUs.max)}`,
  );
  print(`  CPU of this process: ${Math.round(cpuPercent)} %`);
}

export const blkfrontCommand = group({
  name: "blkfront",
  summary: "Use a disk as a guest would, from user space",
  actions: [nbd, bench],
  examples: [
    ["xentool blkfront nbd --vdev xvdb --socket /tmp/xvdb.sock", "our disk for qemu-img, nbdcopy and others"],
    ["xentool blkfront bench --vdev xvdb", "how fast it is; reads only"],
  ],
});
