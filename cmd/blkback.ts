// `xentool blkback`: serving disks to guests, the toolstack's steps one by one, and statistics.
import type { DeviceAddress } from "../src/blkback/address.ts";
import type { Installed } from "../src/blkback/host/install.ts";
import type { AskedRates } from "../src/blkback/limits/rate-keys.ts";
import { XentoolError } from "../src/core/errors.ts";
import { askedRates, RATE_OPTIONS, serveCommand } from "./blkback-serve.ts";
import { watchCommand } from "./blkback-watch.ts";
import { command, group, WAITS_FOR_NOBODY, type Command } from "./lib/command.ts";
import { choice, flag, number, text, texts } from "./lib/option.ts";
import type { CommandContext } from "./lib/run-command.ts";
import {
  DETACH_TIMEOUT_MS,
  DEVICE_OPTIONS,
  DEVICE_TYPE,
  withDevice,
  withSession,
  type Session,
} from "./lib/session.ts";

const DETACH_TIMEOUT =
  "Seconds that the guest has to let go (default 10), and xenstore to answer (default 5)";
const SERVER_TIMEOUT =
  "Seconds that the disk's server may take to answer (default 10), and xenstore (default 5)";

/** A command that performs one step on one device. `work` may return the exit status. */
function step(
  {
    name,
    summary,
    example,
    timeout,
  }: Pick<Command, "name" | "summary"> & Partial<Pick<Command, "timeout">> & { example: string },
  work: (session: Session, address: DeviceAddress, context: CommandContext) => Promise<number | void>,
): Command {
  return command({
    name,
    summary,
    options: DEVICE_OPTIONS,
    ...(timeout !== undefined && { timeout }),
    examples: [[`xentool blkback ${name} --domid 1 --vdev xvdb`, example]],
    run: (argv, context) => withDevice(context, argv, (session, address) => work(session, address, context)),
  });
}

/** With --json, what was done to the device; people see from the exit status that it was. */
async function reportDone(address: DeviceAddress, done: string, { json }: CommandContext): Promise<void> {
  const { vdevName } = await import("../src/protocol/blkif.ts");
  const { printJson } = await import("./lib/output.ts");
  const { frontend, devid, kind } = address;
  if (json) printJson({ domid: frontend, vdev: vdevName(devid), kind, done });
}

const create = command({
  name: "create",
  summary: "Make a device's directories in xenstore, as the toolstack does",
  options: {
    ...DEVICE_OPTIONS,
    "device-type": DEVICE_TYPE,
    mode: choice(["r", "w"], "Read-only or writable", { initial: "w" }),
    params: text(
      "What the backend should serve: for watch an absolute path or an NBD URI; aio:/a.img for QEMU",
      { initial: "" },
    ),
  },
  examples: [
    ["xentool blkback create --domid 1 --vdev xvdb", "then serve it under the same name"],
    [
      "xentool blkback create --domid 1 --vdev xvdb --params aio:/a.img",
      "for the guest's QEMU, if it has one",
    ],
  ],
  run: ({ params, ...argv }, context) => {
    // Whoever serves it has another working directory than we have.
    if (params !== "" && !params.startsWith("/") && !params.includes(":"))
      throw new XentoolError(
        "usage",
        `--params must be an absolute path or a URI, not ${JSON.stringify(params)}`,
      );
    return withDevice(context, argv, async ({ xenstore }, address) => {
      const { createDevice } = await import("../src/blkback/toolstack.ts");
      const { deviceType } = argv;
      await createDevice(xenstore, { address, readOnly: argv.mode === "r", deviceType, params });
      return reportDone(address, "created", context);
    });
  },
});

const destroy = step(
  {
    name: "destroy",
    summary: "Remove a device's directories, used or not",
    example: "as if it had never been",
  },
  async ({ platform, xenstore }, address, context) => {
    const { destroyDevice } = await import("../src/blkback/toolstack.ts");
    const { removeRemains } = await import("../src/blkback/device/remains.ts");
    await destroyDevice(xenstore, address);
    await removeRemains(platform, xenstore, address);
    return reportDone(address, "destroyed", context);
  },
);

const close = step(
  {
    name: "close",
    summary: "Hot-unplug: ask the guest to let go, and wait for it",
    example: "the guest decides when",
    timeout: DETACH_TIMEOUT,
  },
  async ({ xenstore }, address, context) => {
    const { closeDevice, waitUntilClosed } = await import("../src/blkback/toolstack.ts");
    await closeDevice(xenstore, address);
    await waitUntilClosed(xenstore, address, context.timeoutMs ?? DETACH_TIMEOUT_MS, context.stop);
    return reportDone(address, "closed", context);
  },
);

const forceClose = step(
  {
    name: "force-close",
    summary: "Take the disk away without asking: what the guest has not written is lost",
    example: "for a guest that hangs",
    timeout: DETACH_TIMEOUT,
  },
  async ({ platform, xenstore }, address, context) => {
    const { forceCloseDevice, waitUntilClosed } = await import("../src/blkback/toolstack.ts");
    const { removeRemains } = await import("../src/blkback/device/remains.ts");
    await forceCloseDevice(xenstore, address);
    await removeRemains(platform, xenstore, address);
    await waitUntilClosed(xenstore, address, context.timeoutMs ?? DETACH_TIMEOUT_MS, context.stop);
    return reportDone(address, "force-closed", context);
  },
);

const resize = step(
  {
    name: "resize",
    summary: "Tell the guest the image's new size",
    example: "after truncate -s +1G disk.img",
    timeout: SERVER_TIMEOUT,
  },
  async ({ xenstore }, address, { json, stop, timeoutMs = DETACH_TIMEOUT_MS }) => {
    const { resizeDevice } = await import("../src/blkback/device/resize.ts");
    const { printResize } = await import("./lib/blkback-report.ts");
    return printResize(address, await resizeDevice(xenstore, address, { timeoutMs, signal: stop }), json);
  },
);

const limit = command({
  name: "limit",
  summary: "Change how fast a disk may be while its guest uses it, or show it",
  options: { ...DEVICE_OPTIONS, ...RATE_OPTIONS },
  timeout: SERVER_TIMEOUT,
  examples: [
    ["xentool blkback limit --domid 1 --vdev xvdb --iops 500,burst=2000", "what passes that waits"],
    ["xentool blkback limit --domid 1 --vdev xvdb --iops none --bandwidth 20M", "bytes instead"],
    ["xentool blkback limit --domid 1 --vdev xvdb", "the limits in force"],
  ],
  run: async (argv, context) => {
    // Before anything is looked for: a mistyped limit needs no xenstore.
    const asked = await askedRates(argv);
    await withDevice(context, argv, (session, address) => runLimit(context, session, address, asked));
  },
});

async function runLimit(
  { json, stop, timeoutMs = DETACH_TIMEOUT_MS }: CommandContext,
  session: Session,
  address: DeviceAddress,
  asked: AskedRates,
): Promise<void> {
  const { limitDevice, readRates } = await import("../src/blkback/limits/rate-keys.ts");
  const { printRates } = await import("./lib/rates-report.ts");
  const { xenstore } = session;
  const isQuestion = asked.iops === undefined && asked.bandwidth === undefined;
  const rates = isQuestion
    ? await readRates(xenstore, address)
    : await limitDevice(xenstore, address, asked, { timeoutMs, signal: stop });
  printRates(address, rates, json);
}

const list = command({
  name: "list",
  summary: "Every block device that this domain is the backend of",
  options: {},
  examples: [["xentool blkback list --json", "for scripts"]],
  run: (_argv, context) =>
    withSession(context, async ({ platform, xenstore }) => {
      const { listDevices } = await import("../src/blkback/device/device-list.ts");
      const { readAllStats, statsDir } = await import("../src/blkback/stats/stats.ts");
      const { printDevices } = await import("./lib/blkback-report.ts");
      const served = readAllStats(statsDir(platform.descriptor));
      printDevices(await listDevices(xenstore, platform.domid, served), context.json);
    }),
});

const stats = command({
  name: "stats",
  summary: "What the disks served on this host are doing",
  options: {
    domid: text("Only this guest, by number or name", { complete: "domain" }),
    vdev: text("Only this disk", { complete: "vdev" }),
    watch: flag("Show rates again and again, until Ctrl-C"),
    interval: number("Seconds between the lines of --watch", 0.1, 86_400, { initial: 1 }),
    prometheus: flag("Print them as metrics, once"),
  },
  timeout: "Seconds that xenstore may take to find a domain by its name (default 5)",
  examples: [
    ["xentool blkback stats", "totals, latencies, how full the ring was"],
    ["xentool blkback stats --watch --interval 5", "a line a disk, every 5 seconds"],
    ["xentool blkback stats --watch --json", "an object a line, every second"],
    ["xentool blkback stats --prometheus", "for the node exporter's textfile collector"],
  ],
  run: async (argv, context) => {
    const { runStats } = await import("./lib/stats-report.ts");
    await runStats(argv, context);
  },
});

/** Of `install` and `uninstall`, which write and remove the same files. */
const PLACE_OPTIONS = {
  root: text("The host's file system, or the tree of a package", { initial: "/", complete: "directory" }),
  prefix: text("For packages: below PREFIX/lib instead of /etc, with PREFIX/bin/xentool", {
    complete: "directory",
  }),
};

const installCommand = command({
  name: "install",
  summary: "Have xl's disks with script=block-xentool served by us",
  options: {
    ...PLACE_OPTIONS,
    images: texts(
      "The units reach images there alone: a directory, /dev for block devices, network; repeatable; default: anywhere",
    ),
  },
  timeout: WAITS_FOR_NOBODY,
  examples: [
    ["xentool blkback install", "then: systemctl enable --now xentool-blkback"],
    ["xentool blkback install --images /srv/images --images /dev", "no other files, and no network"],
    ["xentool blkback install --root debian/xentool --prefix /usr", "the same, in a package's tree"],
  ],
  run: async ({ root, prefix, images }, { json }) => {
    const { install } = await import("../src/blkback/host/install.ts");
    return reportInstalled("wrote", install({ root, prefix, executable: process.execPath, images }), json);
  },
});

const uninstallCommand = command({
  name: "uninstall",
  summary: "Undo install",
  options: PLACE_OPTIONS,
  timeout: WAITS_FOR_NOBODY,
  examples: [
    ["xentool blkback uninstall", "stops and disables the unit, too"],
    ["xentool blkback uninstall --root debian/xentool --prefix /usr", "the same, in a package's tree"],
  ],
  run: async ({ root, prefix }, { json }) => {
    const { uninstall } = await import("../src/blkback/host/install.ts");
    return reportInstalled("removed", uninstall({ root, prefix, executable: process.execPath }), json);
  },
});

async function reportInstalled(done: string, { paths, notes }: Installed, json: boolean): Promise<void> {
  const { print, printJson } = await import("./lib/output.ts");
  if (json) return printJson({ paths, notes });
  if (paths.length === 0) print(done === "wrote" ? "nothing to write" : "nothing is installed");
  else for (const path of paths) print(`${done} ${path}`);
  for (const note of notes) process.stderr.write(`xentool: ${note}\n`);
}

export const blkbackCommand = group({
  name: "blkback",
  summary: "Serve disks to guests over the PV block ring",
  actions: [
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
  examples: [
    ["xentool blkback serve disk.img --domid 1 --vdev xvdb", "give domain 1 a disk, until Ctrl-C"],
    ["xentool blkback stats --watch", "how the disks are doing, every second"],
  ],
});
