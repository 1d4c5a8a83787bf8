// `xentool blkback`: serve disks to guests, the toolstack's steps one by one, and statistics.
import type { Argv, CommandModule } from "yargs";
import type { DeviceAddress } from "../src/blkback/address.ts";
import type { Platform } from "../src/platform/platform.ts";
import type { Xenstore } from "../src/xenstore/client.ts";
import { runCommand, type CommandContext, type GlobalArguments } from "./lib/run-command.ts";

interface DeviceArguments extends GlobalArguments {
  readonly domid: number;
  readonly vdev: string;
  readonly kind: string | undefined;
}

/** --domid, --vdev and --kind, which name a device. */
function deviceOptions<T>(argv: Argv<T>): Argv<T & Omit<DeviceArguments, keyof GlobalArguments>> {
  return argv
    .option("domid", { type: "number", demandOption: true, requiresArg: true, describe: "The guest" })
    .option("vdev", {
      type: "string",
      demandOption: true,
      requiresArg: true,
      describe: "Its disk: xvdb, sda, 51728",
    })
    .option("kind", {
      type: "string",
      requiresArg: true,
      describe: "Directory name of the backend (default qdisk)",
    }) as never;
}

interface Session {
  readonly platform: Platform;
  readonly xenstore: Xenstore;
}

/** Runs `body` with a platform and a xenstore connection, and closes both. */
async function withSession<T>(context: CommandContext, body: (session: Session) => Promise<T>): Promise<T> {
  const { choosePlatform } = await import("../src/platform/open.ts");
  const { Xenstore } = await import("../src/xenstore/client.ts");
  const platform = await choosePlatform({ platform: context.platform });
  try {
    const { timeoutMs } = context;
    const xenstore = await Xenstore.connect(platform, timeoutMs === undefined ? {} : { timeoutMs });
    try {
      return await body({ platform, xenstore });
    } finally {
      xenstore.close();
    }
  } finally {
    platform.close();
  }
}

async function addressOf(platform: Platform, argv: DeviceArguments): Promise<DeviceAddress> {
  const { DEFAULT_KIND } = await import("../src/blkback/address.ts");
  const { toDomid } = await import("../src/core/types.ts");
  const { XentoolError } = await import("../src/core/errors.ts");
  const { parseVdev } = await import("../src/protocol/blkif.ts");
  const devid = parseVdev(argv.vdev);
  if (devid === undefined)
    throw new XentoolError("usage", `--vdev: "${argv.vdev}" is no virtual device; try xvdb`);
  const kind = argv.kind ?? DEFAULT_KIND;
  if (!/^[A-Za-z0-9_-]{1,32}$/.test(kind))
    throw new XentoolError("usage", `--kind: "${kind}" is no directory name`);
  return { backend: platform.domid, kind, frontend: toDomid(argv.domid, "--domid"), devid };
}

/** Offers, and how long a guest has to let go. */
const DETACH_TIMEOUT_MS = 10_000;

const serve: CommandModule<GlobalArguments, DeviceArguments & ServeArguments> = {
  command: "serve <image>",
  describe: "Serve a disk image or block device until the guest lets go or SIGTERM",
  builder: (argv) =>
    deviceOptions(argv)
      .positional("image", { type: "string", demandOption: true, describe: "A file or a block device" })
      .option("mode", {
        choices: ["r", "w"] as const,
        default: "w" as const,
        describe: "Read-only or writable",
      })
      .option("device-type", {
        choices: ["disk", "cdrom"] as const,
        default: "disk" as const,
        describe: "What the guest sees",
      })
      .option("direct", { type: "boolean", default: false, describe: "Bypass the page cache (O_DIRECT)" })
      .option("sector-size", {
        choices: [512, 4096] as const,
        default: 512 as const,
        describe: "Logical sector size, bytes",
      })
      .option("max-ring-page-order", {
        type: "number",
        default: 4,
        requiresArg: true,
        describe: "Rings of up to 2^N pages, N 0 to 4",
      })
      .option("max-indirect-segments", {
        type: "number",
        default: 256,
        requiresArg: true,
        describe: "0 to 4096; 0: none offered",
      })
      .option("grants", {
        choices: ["copy", "map"] as const,
        default: "copy" as const,
        describe: "How data crosses",
      })
      .option("engine", {
        choices: ["uring", "sync"] as const,
        default: "uring" as const,
        describe: "io_uring or pread/pwrite",
      })
      .option("filter", {
        type: "string",
        array: true,
        default: [],
        requiresArg: true,
        describe: "error:…, delay:… or log:…; repeatable",
      })
      .option("run", {
        type: "string",
        requiresArg: true,
        describe: "Run this shell command once a guest may connect, then detach",
      })
      .example("xentool blkback serve disk.img --domid 1 --vdev xvdb", "one disk for domain 1")
      .example(
        "xentool blkback serve /dev/vg/root --domid 1 --vdev xvda --direct",
        "a volume, without the page cache",
      )
      .example(
        "xentool blkback serve d.img --domid 1 --vdev xvdc --filter error:rate=1%,op=read",
        "a disk with faults",
      ) as never,
  handler: (argv) =>
    runCommand(argv, (context) => withSession(context, (session) => runServe(context, session, argv))),
};

interface ServeArguments {
  readonly image: string;
  readonly mode: "r" | "w";
  readonly deviceType: "disk" | "cdrom";
  readonly direct: boolean;
  readonly sectorSize: 512 | 4096;
  readonly maxRingPageOrder: number;
  readonly maxIndirectSegments: number;
  readonly grants: "copy" | "map";
  readonly engine: "uring" | "sync";
  readonly filter: readonly string[];
  readonly run: string | undefined;
}

async function runServe(
  context: CommandContext,
  session: Session,
  argv: DeviceArguments & ServeArguments,
): Promise<number> {
  const { serveImage } = await import("../src/blkback/serve.ts");
  const { parseFilter } = await import("../src/block/filter.ts");
  const { describeDevice } = await import("../src/blkback/address.ts");
  const { XentoolError } = await import("../src/core/errors.ts");
  const { statsDir } = await import("../src/blkback/stats.ts");
  const { spawnWorker } = await import("./spawn-worker.ts");
  const { platform, xenstore } = session;
  const address = await addressOf(platform, argv);
  const finished = new AbortController();
  let commandStatus = 0;
  let command: Promise<void> | undefined;
  const end = await serveImage(
    platform,
    xenstore,
    {
      path: argv.image,
      address,
      readOnly: argv.mode === "r" || argv.deviceType === "cdrom",
      direct: argv.direct,
      detachTimeoutMs: context.timeoutMs ?? DETACH_TIMEOUT_MS,
      offer: {
        deviceType: argv.deviceType,
        logicalSectorBytes: argv.sectorSize,
        maxRingPageOrder: argv.maxRingPageOrder,
        maxIndirectSegments: argv.maxIndirectSegments,
      },
      grantMode: argv.grants,
      engine: argv.engine,
      filters: argv.filter.map(parseFilter),
      statsDir: statsDir(platform.descriptor),
      verbosity: context.verbosity,
    },
    spawnWorker,
    AbortSignal.any([context.stop, finished.signal]),
    context.force,
    () => {
      const offered = { domid: address.frontend, vdev: argv.vdev, kind: address.kind, image: argv.image };
      if (context.json) process.stdout.write(`${JSON.stringify({ event: "offered", ...offered })}\n`);
      else process.stderr.write(`xentool: offering ${argv.image} as ${describeDevice(address)}\n`);
      if (argv.run === undefined) return;
      const child = Bun.spawn(["sh", "-c", argv.run], { stdio: ["inherit", "inherit", "inherit"] });
      command = child.exited.then((status) => {
        commandStatus = status;
        finished.abort();
      });
    },
  );
  if (end === "left")
    throw new XentoolError(
      "timeout",
      `the guest did not let go of ${describeDevice(address)}: it stays, unserved, until it is served again or force-closed`,
    );
  await command;
  if (context.json) process.stdout.write(`${JSON.stringify({ event: "ended", reason: end })}\n`);
  return commandStatus;
}

/** A command that does one thing to one device. */
function step(
  command: string,
  describe: string,
  example: string,
  work: (session: Session, address: DeviceAddress, context: CommandContext) => Promise<void>,
): CommandModule<GlobalArguments, DeviceArguments> {
  return {
    command,
    describe,
    builder: (argv) =>
      deviceOptions(argv).example(`xentool blkback ${command} --domid 1 --vdev xvdb`, example),
    handler: (argv) =>
      runCommand(argv, (context) =>
        withSession(context, async (session) =>
          work(session, await addressOf(session.platform, argv), context),
        ),
      ),
  };
}

interface CreateArguments extends DeviceArguments {
  readonly mode: "r" | "w";
  readonly deviceType: "disk" | "cdrom";
  readonly params: string;
}

const create: CommandModule<GlobalArguments, CreateArguments> = {
  command: "create",
  describe: "Make a device's directories in xenstore, as the toolstack does",
  builder: (argv) =>
    deviceOptions(argv)
      .option("mode", {
        choices: ["r", "w"] as const,
        default: "w" as const,
        describe: "Read-only or writable",
      })
      .option("device-type", {
        choices: ["disk", "cdrom"] as const,
        default: "disk" as const,
        describe: "What the guest sees",
      })
      .option("params", {
        type: "string",
        default: "",
        requiresArg: true,
        describe: "Noted for people who look",
      })
      .example("xentool blkback create --domid 1 --vdev xvdb", "then serve it under the same name") as never,
  handler: (argv) =>
    runCommand(argv, (context) =>
      withSession(context, async ({ platform, xenstore }) => {
        const { createDevice } = await import("../src/blkback/toolstack.ts");
        const address = await addressOf(platform, argv);
        const { deviceType, params } = argv;
        await createDevice(xenstore, { address, readOnly: argv.mode === "r", deviceType, params });
      }),
    ),
};

const destroy = step(
  "destroy",
  "Remove a device's directories, used or not",
  "as if it had never been",
  async ({ xenstore }, address) => {
    const { destroyDevice } = await import("../src/blkback/toolstack.ts");
    await destroyDevice(xenstore, address);
  },
);

const close = step(
  "close",
  "Hot-unplug: ask the guest to let go, and wait for it",
  "the guest decides when",
  async ({ xenstore }, address, context) => {
    const { closeDevice, waitUntilClosed } = await import("../src/blkback/toolstack.ts");
    await closeDevice(xenstore, address);
    await waitUntilClosed(xenstore, address, context.timeoutMs ?? DETACH_TIMEOUT_MS, context.stop);
  },
);

const forceClose = step(
  "force-close",
  "Take the disk away without asking: what the guest has not written is lost",
  "for a guest that hangs",
  async ({ xenstore }, address, context) => {
    const { forceCloseDevice, waitUntilClosed } = await import("../src/blkback/toolstack.ts");
    await forceCloseDevice(xenstore, address);
    await waitUntilClosed(xenstore, address, context.timeoutMs ?? DETACH_TIMEOUT_MS, context.stop);
  },
);

const resize = step(
  "resize",
  "Tell the guest the image's new size",
  "after truncate -s +1G disk.img",
  async ({ xenstore }, address) => {
    const { resizeDevice } = await import("../src/blkback/toolstack.ts");
    await resizeDevice(xenstore, address);
  },
);

const list: CommandModule<GlobalArguments, GlobalArguments> = {
  command: "list",
  describe: "Every block device that this domain is the backend of",
  builder: (argv) => argv.example("xentool blkback list --json", "for scripts"),
  handler: (argv) =>
    runCommand(argv, (context) =>
      withSession(context, async ({ platform, xenstore }) => {
        const { listDevices } = await import("../src/blkback/toolstack.ts");
        const { printDevices } = await import("./lib/blkback-report.ts");
        printDevices(await listDevices(xenstore, platform.domid), context.json);
      }),
    ),
};

interface StatsArguments extends GlobalArguments {
  readonly domid: number | undefined;
  readonly vdev: string | undefined;
  readonly watch: boolean;
}

const stats: CommandModule<GlobalArguments, StatsArguments> = {
  command: "stats",
  describe: "What the disks served on this host are doing",
  builder: (argv) =>
    argv
      .option("domid", { type: "number", requiresArg: true, describe: "Of this guest only" })
      .option("vdev", { type: "string", requiresArg: true, describe: "Of this disk only" })
      .option("watch", { type: "boolean", default: false, describe: "Again every second, with rates" })
      .example("xentool blkback stats", "totals, latencies, how full the ring was")
      .example("xentool blkback stats --watch --json", "an object a line, every second") as never,
  handler: (argv) =>
    runCommand(argv, async (context) => {
      const { choosePlatform } = await import("../src/platform/open.ts");
      const { showStats } = await import("./lib/blkback-report.ts");
      const platform = await choosePlatform({ platform: context.platform });
      try {
        await showStats(platform, argv, context);
      } finally {
        platform.close();
      }
    }),
};

export const blkbackCommand: CommandModule<GlobalArguments, GlobalArguments> = {
  command: "blkback <action>",
  describe: "Serve disks to guests over the PV block ring",
  builder: (argv) =>
    [serve, create, destroy, close, forceClose, resize, list, stats]
      .reduce((all, command) => all.command(command as CommandModule<GlobalArguments, unknown>), argv)
      .demandCommand(1, 1, "Which action?", "Only one action, please")
      .strict() as never,
  handler: () => {},
};
