// `xentool blkback serve`, and what it has in common with `watch` (blkback-watch.ts).
import { existsSync } from "node:fs";
import type { DeviceOptions } from "../src/blkback/device/device.ts";
import type { DeviceAddress } from "../src/blkback/address.ts";
import type { OnDeviceEvent } from "../src/blkback/device/device-events.ts";
import type { JailMode } from "../src/platform/jail.ts";
import type { AskedRates } from "../src/blkback/limits/rate-keys.ts";
import type { ServeEnd, ServeOptions } from "../src/blkback/serve.ts";
import type { Platform } from "../src/platform/platform.ts";
import { MAX_CONNECTIONS, MAX_QUEUES } from "../src/blkback/bounds.ts";
import { MAX_INDIRECT_SEGMENTS } from "../src/protocol/blkif.ts";
import { RING_MAX_PAGE_ORDER } from "../src/protocol/ring.ts";
import { command, type ArgumentsOf } from "./lib/command.ts";
import { PROGRAM_FORMATS, type ProgramFormat } from "../src/block/program/commands.ts";
import { choice, flag, number, text, texts, wholeNumber } from "./lib/option.ts";
import type { CommandContext } from "./lib/run-command.ts";
import { DETACH_TIMEOUT_MS, DEVICE_OPTIONS, DEVICE_TYPE, withDevice, type Session } from "./lib/session.ts";

/** How fast a disk may be. */
export const RATE_OPTIONS = {
  iops: text("At most N requests a second, or read:N,write:N; also burst=N; none"),
  bandwidth: text("At most SIZE a second, or read:SIZE,write:SIZE; also burst=SIZE; none"),
};

export const JAIL_OPTION = choice(
  ["on", "strict", "off"],
  "Give up what serving does not need; strict: all of it or fail; default: on",
);
/** What nobody has chosen otherwise: without an initial value, `watch` can tell. */
export const USUAL_JAIL: JailMode = "on";

/** How disks are served, the same for both commands. */
export const SERVING_OPTIONS = {
  direct: flag("Bypass the page cache (O_DIRECT)"),
  "sector-size": choice([512, 4096], "Logical sector size, bytes", { initial: 512 }),
  "max-queues": wholeNumber("Queues a guest may use, 1 to 16; default: processors, at most 4", 1, MAX_QUEUES),
  "max-ring-page-order": wholeNumber("Rings of up to 2^N pages, N 0 to 4", 0, RING_MAX_PAGE_ORDER, {
    initial: 4,
  }),
  "max-indirect-segments": wholeNumber("0 to 4096; 0: none", 0, MAX_INDIRECT_SEGMENTS, { initial: 256 }),
  grants: choice(
    ["copy", "map", "persistent"],
    "How data crosses; persistent if the guest agrees, else copy",
    { initial: "copy" },
  ),
  threads: wholeNumber("Threads for the queues of a disk, 1 to 16", 1, MAX_QUEUES, { initial: 1 }),
  engine: choice(["uring", "sync"], "io_uring or pread/pwrite", { initial: "uring" }),
  connections: wholeNumber(
    "Connections to an NBD server, 1 to 16, if it allows several",
    1,
    MAX_CONNECTIONS,
    { initial: 4 },
  ),
  "in-place": choice(
    ["yes", "no"],
    "Read and write what QEMU's daemon has put in place in a qcow2; no: leave all of it to the daemon",
    { initial: "yes" },
  ),
  hold: number("Seconds that a disk waits for its NBD server, then it fails; default: for ever", 0, Infinity),
  filter: texts("A filter in front of the disk; repeatable; help lists them"),
  ...RATE_OPTIONS,
};
export type ServingArguments = ArgumentsOf<typeof SERVING_OPTIONS>;

/** Handles `--filter help`, whatever else is on the command line. */
export function explainFilters(argv: { readonly filter?: unknown }): Promise<never> | undefined {
  return Array.isArray(argv.filter) && argv.filter.includes("help") ? printFilters() : undefined;
}

async function printFilters(): Promise<never> {
  const { filterHelp } = await import("../src/block/filters/catalogue.ts");
  process.stdout.write(filterHelp());
  process.exit(0);
}

/** The limits on the command line; those that are not there stay as the device's keys say. */
export async function askedRates(argv: Pick<ServingArguments, "iops" | "bandwidth">): Promise<AskedRates> {
  const { parseRate } = await import("../src/blkback/limits/rates.ts");
  const { iops, bandwidth } = argv;
  return {
    ...(iops !== undefined && { iops: parseRate("iops", "--iops", iops) }),
    ...(bandwidth !== undefined && { bandwidth: parseRate("bandwidth", "--bandwidth", bandwidth) }),
  };
}

/** The device options that the command line determines. */
export async function servingOptionsOf(
  argv: ServingArguments,
  platform: Platform,
  context: CommandContext,
): Promise<Omit<DeviceOptions, "offer"> & { offer: Omit<DeviceOptions["offer"], "deviceType"> }> {
  const { parseFilter } = await import("../src/block/filters/catalogue.ts");
  const { DEFAULT_OFFER } = await import("../src/blkback/device/features.ts");
  const { statsDir } = await import("../src/blkback/stats/stats.ts");
  const { checkThreads } = await import("../src/blkback/device/threads.ts");
  argv.filter.forEach(parseFilter);
  checkThreads(argv.threads, argv.filter);
  return {
    offer: {
      logicalSectorBytes: argv.sectorSize,
      maxQueues: argv.maxQueues ?? DEFAULT_OFFER.maxQueues,
      maxRingPageOrder: argv.maxRingPageOrder,
      maxIndirectSegments: argv.maxIndirectSegments,
    },
    grantMode: argv.grants,
    engine: argv.engine,
    threads: argv.threads,
    ...(argv.hold !== undefined && { holdMs: argv.hold * 1000 }),
    filters: argv.filter,
    statsDir: statsDir(platform.descriptor),
    verbosity: context.verbosity,
  };
}

/** Ends that nobody here asked for, and that are not failures of ours. */
const UNEXPECTED: Readonly<Partial<Record<ServeEnd, string>>> = {
  removed: "the device was removed",
  "frontend-gone": "the guest, or its end of the device, is gone",
};

const SERVE_OPTIONS = {
  image: text("A file, a block device, an NBD URI, or what --via calls $1", {
    positional: true,
    complete: "file",
  }),
  ...DEVICE_OPTIONS,
  "device-type": DEVICE_TYPE,
  ...SERVING_OPTIONS,
  format: choice(["raw", ...PROGRAM_FORMATS], "Format of the image; raw: its bytes, whatever they look like"),
  "key-file": text("A file with the passphrase, for --format luks", { complete: "file" }),
  via: text("Run this program, which serves the disk by NBD on a socket that it gets (LISTEN_FDS)"),
  mode: choice(["r", "w", "w!"], "Read-only, writable, or w!: writable though others use the image", {
    initial: "w",
  }),
  run: text("Run this shell command once a guest may connect, then detach"),
  jail: JAIL_OPTION,
};
type ServeArguments = ArgumentsOf<typeof SERVE_OPTIONS>;

export const serveCommand = command({
  name: "serve",
  summary: "Serve a disk image or block device until it is detached, its guest is gone, or SIGTERM",
  options: SERVE_OPTIONS,
  timeout:
    "Seconds that xenstore may take to answer (default 5), and the guest to let go at the end (default 10); it may connect at any time",
  early: explainFilters,
  examples: [
    ["xentool blkback serve disk.img --domid 1 --vdev xvdb", "one disk for domain 1"],
    ["xentool blkback serve /dev/vg/root --domid 1 --vdev xvda --direct", "a volume, without the page cache"],
    ["xentool blkback serve a.qcow2 --format qcow2 --domid 1 --vdev xvdb", "through QEMU's storage daemon"],
    [
      "xentool blkback serve 64M --via 'nbdkit memory $1' --domid 1 --vdev xvdb",
      "through any NBD server that takes LISTEN_FDS",
    ],
    [
      "xentool blkback serve d.img --domid 1 --vdev xvdc --filter error:rate=1%",
      "one request in a hundred fails",
    ],
    [
      "xentool blkback serve d.img --domid 1 --vdev xvdd --iops 500 --bandwidth 20M",
      "no faster than that; `limit` changes it",
    ],
  ],
  run: (argv, context) =>
    withDevice(context, argv, (session, address) => runServe(context, session, address, argv)),
});

async function runServe(
  context: CommandContext,
  session: Session,
  address: DeviceAddress,
  argv: ServeArguments,
): Promise<number> {
  const { serveImage } = await import("../src/blkback/serve.ts");
  const { spawnWorker } = await import("./spawn-worker.ts");
  await checkImageOptions(argv);
  const { platform, xenstore } = session;
  const { ServedDisk } = await import("./lib/serving-events.ts");
  const { Service } = await import("./lib/service.ts");
  const { disksAnswer } = await import("../src/blkback/stats/alive.ts");
  const { PreparedCommand } = await import("./lib/prepared-command.ts");
  const options = await serveOptionsOf(argv, address, platform, context);
  const disk = new ServedDisk(address, argv.image, context, options.detachTimeoutMs);
  const finished = new AbortController();
  const failed = new AbortController();
  let command: Promise<number> | undefined;
  using service = new Service(context.stop);
  using prepared = argv.run === undefined ? undefined : new PreparedCommand(argv.run);
  const mode = argv.jail ?? USUAL_JAIL;
  const jailWish = { strict: mode === "strict", notifies: service.heardAt, child: prepared?.pid };
  const onEvent: OnDeviceEvent = (at, event) => {
    disk.onEvent(at, event);
    service.changed();
  };
  const onOffered = (): void => {
    disk.offered();
    service.ready(
      () => disk.status,
      () => disksAnswer(argv.engine),
    );
    const stop = AbortSignal.any([context.stop, failed.signal]);
    command = prepared?.run(stop, context.force).finally(() => finished.abort());
  };
  try {
    const end = await serveImage(
      platform,
      xenstore,
      { ...options, onEvent, jailWish: mode === "off" ? undefined : jailWish },
      spawnWorker,
      AbortSignal.any([context.stop, finished.signal]),
      context.force,
      onOffered,
    );
    return await reportEnd(end, address, context.json, command);
  } catch (error) {
    failed.abort();
    await command;
    throw error;
  }
}

/** What the command line says about the disk; the rest is up to this process. */
async function serveOptionsOf(
  argv: ServeArguments,
  address: DeviceAddress,
  platform: Platform,
  context: CommandContext,
): Promise<ServeOptions> {
  const serving = await servingOptionsOf(argv, platform, context);
  return {
    ...serving,
    askedRates: await askedRates(argv),
    path: argv.image,
    address,
    readOnly: argv.mode === "r" || argv.deviceType === "cdrom",
    shared: argv.mode === "w!",
    direct: argv.direct,
    connections: argv.connections,
    inPlace: argv.inPlace === "yes",
    ...imageOptionsOf(argv),
    detachTimeoutMs: context.timeoutMs ?? DETACH_TIMEOUT_MS,
    offer: { ...serving.offer, deviceType: argv.deviceType },
  };
}

/** Says why the disk is not served any more, and returns the exit status: that of `command`, if there was one. */
async function reportEnd(
  end: ServeEnd,
  address: DeviceAddress,
  json: boolean,
  command: Promise<number> | undefined,
): Promise<number> {
  const { describeDevice } = await import("../src/blkback/address.ts");
  const { XentoolError } = await import("../src/core/errors.ts");
  if (end === "left")
    throw new XentoolError(
      "timeout",
      `the guest did not let go of ${describeDevice(address)}: it stays, unserved, until it is served again or force-closed`,
    );
  const status = await command;
  const why = UNEXPECTED[end];
  if (json) process.stdout.write(`${JSON.stringify({ event: "ended", reason: end })}\n`);
  else if (why !== undefined) process.stderr.write(`xentool: ${describeDevice(address)}: ${why}\n`);
  return status ?? 0;
}

/** What the image is, or how it is opened. */
function imageOptionsOf({ format, via, keyFile }: ServeArguments): Pick<ServeOptions, "format" | "opener"> {
  if (via !== undefined) return { opener: { via } };
  if (isProgramFormat(format)) return { opener: { format, keyFile } };
  return { format };
}

/** Throws `usage` for options that contradict each other. */
async function checkImageOptions(argv: ServeArguments): Promise<void> {
  const { format, via, keyFile, image, jail, threads } = argv;
  const { XentoolError } = await import("../src/core/errors.ts");
  const { isNbdUri } = await import("../src/block/image/nbd.ts");
  const { splitImageWords } = await import("../src/blkback/image/image-words.ts");
  if (via !== undefined && format !== undefined)
    throw new XentoolError(
      "usage",
      "--format says how xentool opens the image, and --via opens it otherwise",
    );
  const hasProgram = via !== undefined || isProgramFormat(format);
  if (threads > 1 && (hasProgram || isNbdUri(image)))
    throw new XentoolError("usage", "an image that another program serves to us needs --threads 1");
  if (jail === "strict" && hasProgram)
    throw new XentoolError("usage", "an image that another program opens is served without --jail strict");
  if (keyFile !== undefined && format !== "luks")
    throw new XentoolError("usage", "--key-file is for --format luks");
  const words = splitImageWords(image);
  if (via === undefined && words.format !== undefined && !existsSync(image))
    throw new XentoolError(
      "usage",
      `there is no ${image}; if you mean xl's words, here it is ${words.path} --format ${words.format}`,
    );
  if (via === undefined && format !== undefined && isNbdUri(image))
    throw new XentoolError("usage", `${image} is served as it is, without --format`);
}

function isProgramFormat(format: string | undefined): format is ProgramFormat {
  return PROGRAM_FORMATS.some((it) => it === format);
}
