// `xentool blkback`: serving disks to guests, the toolstack's steps one by one, and statistics.
import type { CommandModule } from "yargs";
import type { DeviceAddress } from "../src/blkback/address.ts";
import type { AskedRates } from "../src/blkback/rate-keys.ts";
import { askedRates, BANDWIDTH, IOPS, serveCommand, watchCommand } from "./blkback-serve.ts";
import { actionGroup } from "./lib/action-group.ts";
import { withExamples } from "./lib/examples.ts";
import { runCommand, type CommandContext, type GlobalArguments } from "./lib/run-command.ts";
import {
  addressOf,
  DETACH_TIMEOUT_MS,
  deviceOptions,
  deviceTypeOption,
  withSession,
  type DeviceArguments,
  type Session,
} from "./lib/session.ts";

/** A command that performs one step on one device. `work` may return the exit status. */
function step(
  command: string,
  describe: string,
  example: string,
  work: (session: Session, address: DeviceAddress, context: CommandContext) => Promise<number | void>,
): CommandModule<GlobalArguments, DeviceArguments> {
  return {
    command,
    describe,
    builder: (argv) =>
      withExamples(deviceOptions(argv), [[`xentool blkback ${command} --domid 1 --vdev xvdb`, example]]),
    handler: (argv) =>
      runCommand(argv, (context) =>
        withSession(context, async (session) => work(session, await addressOf(session, argv), context)),
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
    withExamples(
      deviceTypeOption(deviceOptions(argv))
        .option("mode", {
          choices: ["r", "w"] as const,
          default: "w" as const,
          describe: "Read-only or writable",
        })
        .option("params", {
          type: "string",
          default: "",
          requiresArg: true,
          describe: "What the backend should serve: a path for watch, aio:/a.img for QEMU",
        }),
      [
        ["xentool blkback create --domid 1 --vdev xvdb", "then serve it under the same name"],
        [
          "xentool blkback create --domid 1 --vdev xvdb --params aio:/a.img",
          "for the guest's QEMU, if it has one",
        ],
      ],
    ),
  handler: (argv) =>
    runCommand(argv, (context) =>
      withSession(context, async (session) => {
        const { createDevice } = await import("../src/blkback/toolstack.ts");
        const address = await addressOf(session, argv);
        const { deviceType, params } = argv;
        await createDevice(session.xenstore, { address, readOnly: argv.mode === "r", deviceType, params });
      }),
    ),
};

const destroy = step(
  "destroy",
  "Remove a device's directories, used or not",
  "as if it had never been",
  async ({ platform, xenstore }, address) => {
    const { destroyDevice } = await import("../src/blkback/toolstack.ts");
    const { removeRemains } = await import("../src/blkback/remains.ts");
    await destroyDevice(xenstore, address);
    await removeRemains(platform, xenstore, address);
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
  async ({ platform, xenstore }, address, context) => {
    const { forceCloseDevice, waitUntilClosed } = await import("../src/blkback/toolstack.ts");
    const { removeRemains } = await import("../src/blkback/remains.ts");
    await forceCloseDevice(xenstore, address);
    await removeRemains(platform, xenstore, address);
    const late = "nobody seems to serve it; `xentool blkback destroy` removes it";
    await waitUntilClosed(xenstore, address, context.timeoutMs ?? DETACH_TIMEOUT_MS, context.stop, late);
  },
);

const resize = step(
  "resize",
  "Tell the guest the image's new size",
  "after truncate -s +1G disk.img",
  async ({ xenstore }, address, { json, stop, timeoutMs = DETACH_TIMEOUT_MS }) => {
    const { resizeDevice } = await import("../src/blkback/resize.ts");
    const { printResize } = await import("./lib/blkback-report.ts");
    return printResize(address, await resizeDevice(xenstore, address, { timeoutMs, signal: stop }), json);
  },
);

interface LimitArguments extends DeviceArguments {
  readonly iops: string | undefined;
  readonly bandwidth: string | undefined;
}

const LIMIT = "Change how fast a disk may be while its guest uses it, or show it";

const limit: CommandModule<GlobalArguments, LimitArguments> = {
  command: "limit",
  describe: LIMIT,
  builder: (argv) =>
    withExamples(
      deviceOptions(argv)
        .option("iops", { type: "string", requiresArg: true, describe: IOPS })
        .option("bandwidth", { type: "string", requiresArg: true, describe: BANDWIDTH }),
      [
        ["xentool blkback limit --domid 1 --vdev xvdb --iops 500,burst=2000", "what passes that waits"],
        ["xentool blkback limit --domid 1 --vdev xvdb --iops none --bandwidth 20M", "bytes instead"],
        ["xentool blkback limit --domid 1 --vdev xvdb", "the limits in force"],
      ],
    ),
  handler: (argv) =>
    runCommand(argv, async (context) => {
      // Before anything is looked for: a mistyped limit needs no xenstore.
      const asked = await askedRates(argv);
      await withSession(context, (session) => runLimit(context, session, argv, asked));
    }),
};

async function runLimit(
  { json, stop, timeoutMs = DETACH_TIMEOUT_MS }: CommandContext,
  session: Session,
  argv: LimitArguments,
  asked: AskedRates,
): Promise<void> {
  const { limitDevice, readRates } = await import("../src/blkback/rate-keys.ts");
  const { printRates } = await import("./lib/rates-report.ts");
  const address = await addressOf(session, argv);
  const { xenstore } = session;
  const isQuestion = asked.iops === undefined && asked.bandwidth === undefined;
  const rates = isQuestion
    ? await readRates(xenstore, address)
    : await limitDevice(xenstore, address, asked, { timeoutMs, signal: stop });
  printRates(address, rates, json);
}

const list: CommandModule<GlobalArguments, GlobalArguments> = {
  command: "list",
  describe: "Every block device that this domain is the backend of",
  builder: (argv) => withExamples(argv, [["xentool blkback list --json", "for scripts"]]),
  handler: (argv) =>
    runCommand(argv, (context) =>
      withSession(context, async ({ platform, xenstore }) => {
        const { listDevices } = await import("../src/blkback/device-list.ts");
        const { readAllStats, statsDir } = await import("../src/blkback/stats.ts");
        const { printDevices } = await import("./lib/blkback-report.ts");
        const served = readAllStats(statsDir(platform.descriptor));
        printDevices(await listDevices(xenstore, platform.domid, served), context.json);
      }),
    ),
};

interface StatsArguments extends GlobalArguments {
  readonly domid: number | undefined;
  readonly vdev: string | undefined;
  readonly watch: boolean;
  readonly interval: number;
  readonly prometheus: boolean;
}

const stats: CommandModule<GlobalArguments, StatsArguments> = {
  command: "stats",
  describe: "What the disks served on this host are doing",
  builder: (argv) =>
    withExamples(
      argv
        .option("domid", { type: "number", requiresArg: true, describe: "Only this guest" })
        .option("vdev", { type: "string", requiresArg: true, describe: "Only this disk" })
        .option("watch", {
          type: "boolean",
          default: false,
          describe: "Show rates again and again, until Ctrl-C",
        })
        .option("interval", {
          type: "number",
          default: 1,
          requiresArg: true,
          describe: "Seconds between the lines of --watch",
        })
        .option("prometheus", { type: "boolean", default: false, describe: "Print them as metrics, once" }),
      [
        ["xentool blkback stats", "totals, latencies, how full the ring was"],
        ["xentool blkback stats --watch --interval 5", "a line a disk, every 5 seconds"],
        ["xentool blkback stats --watch --json", "an object a line, every second"],
        ["xentool blkback stats --prometheus", "for the node exporter's textfile collector"],
      ],
    ),
  handler: (argv) =>
    runCommand(argv, async (context) => {
      const { choosePlatform } = await import("../src/platform/open.ts");
      const { showStats } = await import("./lib/stats-report.ts");
      const platform = await choosePlatform({ platform: context.platform });
      try {
        await showStats(platform, argv, context);
      } finally {
        platform.close();
      }
    }),
};

interface InstallArguments extends GlobalArguments {
  readonly root: string;
  readonly prefix: string | undefined;
}

/** `install` and `uninstall`, which write and remove the same files. */
function installation(
  name: "install" | "uninstall",
  describe: string,
  example: string,
): CommandModule<GlobalArguments, InstallArguments> {
  return {
    command: name,
    describe,
    builder: (argv) =>
      withExamples(
        argv
          .option("root", {
            type: "string",
            default: "/",
            requiresArg: true,
            describe: "The host's file system, or the tree of a package",
          })
          .option("prefix", {
            type: "string",
            requiresArg: true,
            describe: "For packages: below PREFIX/lib instead of /etc, with PREFIX/bin/xentool",
          }),
        [
          [`xentool blkback ${name}`, example],
          [`xentool blkback ${name} --root debian/xentool --prefix /usr`, "the same, in a package's tree"],
        ],
      ),
    handler: (argv) =>
      runCommand(argv, async (context) => {
        const work = await import("../src/blkback/install.ts");
        const { print, printJson } = await import("./lib/output.ts");
        const { root, prefix } = argv;
        const { paths, notes } = work[name]({ root, prefix, executable: process.execPath });
        if (context.json) return printJson({ paths, notes });
        if (paths.length === 0) print("nothing is installed");
        else for (const path of paths) print(`${name === "install" ? "wrote" : "removed"} ${path}`);
        for (const note of notes) process.stderr.write(`xentool: ${note}\n`);
      }),
  };
}

const installCommand = installation(
  "install",
  "Have xl's disks with script=block-xentool served by us",
  "then: systemctl enable --now xentool-blkback",
);
const uninstallCommand = installation("uninstall", "Undo install", "stops and disables the unit, too");

export const blkbackCommand = actionGroup(
  "blkback",
  "Serve disks to guests over the PV block ring",
  [
    serveCommand,
    watchCommand,
    installCommand,
    uninstallCommand,
    create,
    destroy,
    close,
    forceClose,
    resize,
    limit,
    list,
    stats,
  ],
  [
    ["xentool blkback serve disk.img --domid 1 --vdev xvdb", "give domain 1 a disk, until Ctrl-C"],
    ["xentool blkback stats --watch", "how the disks are doing, every second"],
  ],
);
