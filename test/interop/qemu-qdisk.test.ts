// QEMU, unmodified, as the other end of our frontend, and QEMU's own tools, libnbd's and fio as judges of the bytes: on
// each format that Debian's build serves, with several disks and iothreads at once, set up by QEMU or as libxl does it.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { pattern } from "../sim/blk-harness.ts";
import { finished, start } from "../support/process.ts";
import { ProgramHost, succeeds } from "./program-host.ts";
import { endDisks, exportDisk, startQemu, type ExportedDisk } from "./qdisk.ts";

const DISK_BYTES = 8 << 20;

let host: ProgramHost;
beforeEach(async () => {
  host = await ProgramHost.start();
});
afterEach(() => host.close());

const run = (...argv: string[]): Promise<string> => succeeds(start(argv));

function fio(uri: string, ...args: string[]): string[] {
  const verify = [
    "--verify=crc32c",
    "--verify_fatal=1",
    "--do_verify=1",
    "--verify_state_save=0",
    "--randrepeat=0",
  ];
  return ["fio", "--name=verify", "--ioengine=nbd", `--uri=${uri}`, ...verify, ...args];
}

/** Bytes that are another disk's nowhere. */
function bytesOf(seed: number): Uint8Array {
  return pattern(DISK_BYTES).map((byte) => byte ^ seed);
}

function createImage(format: string, path: string): Promise<string> {
  const options = format === "vpc" ? ["-o", "force_size=on"] : [];
  return run("qemu-img", "create", "-q", "-f", format, ...options, path, String(DISK_BYTES));
}

/** Writes, reads, lets fio write and verify; returns a file of what is then on the disk. */
async function written(disk: ExportedDisk, name: string, seed: number): Promise<string> {
  const source = host.file(`${name}.source`);
  const copy = host.file(`${name}.copy`);
  writeFileSync(source, bytesOf(seed));
  await run("nbdcopy", "--flush", source, disk.uri);
  await run("nbdcopy", disk.uri, copy);
  expect(readFileSync(copy).equals(readFileSync(source))).toBe(true);
  await run(
    ...fio(disk.uri, "--rw=randrw", "--iodepth=64", "--bsrange=512-256k", "--blockalign=512", "--size=6M"),
  );
  await run("nbdcopy", disk.uri, copy);
  return copy;
}

/** -blockdev and -device for a file of the same name as `vdev`. */
function drive(vdev: string, format: string, device: string): string[] {
  const access = device === "xen-cdrom" ? ",read-only=on" : "";
  return [
    "-blockdev",
    `driver=file,filename=${host.file(vdev)},node-name=file-${vdev}${access}`,
    "-blockdev",
    `driver=${format},file=file-${vdev},node-name=${vdev}${access}`,
    "-device",
    `${device},vdev=${vdev},drive=${vdev}`,
  ];
}

const DISKS = [
  { vdev: "xvda", format: "raw", device: "xen-disk,iothread=io0" },
  { vdev: "xvdb", format: "qcow2", device: "xen-disk,iothread=io1" },
  { vdev: "xvdc", format: "vpc", device: "xen-disk,iothread=io0" },
  { vdev: "xvdd", format: "raw", device: "xen-disk" },
] as const;

test("raw, qcow2, vhd and a cdrom, in two iothreads and in the main loop, all at once", async () => {
  for (const { vdev, format } of DISKS) await createImage(format, host.file(vdev));
  writeFileSync(host.file("xvde"), bytesOf(9));
  const qemu = startQemu(
    host,
    ...["io0", "io1"].flatMap((id) => ["-object", `iothread,id=${id}`]),
    ...DISKS.flatMap(({ vdev, format, device }) => drive(vdev, format, device)),
    ...drive("xvde", "raw", "xen-cdrom"),
  );
  const exports = await Promise.all(
    [...DISKS.map(({ vdev }) => vdev), "xvde"].map((vdev) => exportDisk(host, qemu, vdev)),
  );
  const cdrom = async ({ uri }: ExportedDisk): Promise<void> => {
    expect(JSON.parse(await run("nbdinfo", "--json", uri))).toMatchObject({
      exports: [{ is_read_only: true }],
    });
    await run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, host.file("xvde"));
  };
  const copies = await Promise.all(
    exports.map((disk, at) => {
      const vdev = DISKS[at]?.vdev;
      return vdev === undefined ? cdrom(disk) : written(disk, vdev, at + 1);
    }),
  );
  await endDisks(exports, qemu);
  for (const [at, { vdev, format }] of DISKS.entries())
    await run("qemu-img", "compare", "-f", "raw", "-F", format, String(copies[at]), host.file(vdev));
  await run("qemu-img", "check", "-q", host.file("xvdb"));
});

test.each([
  ["aio:", "raw"],
  ["qcow2:", "qcow2"],
  ["vhd:", "vpc"],
])("a device that blkback create makes as libxl does, with %s", async (prefix, format) => {
  const image = host.file("image");
  await createImage(format, image);
  const device = ["--domid", "1", "--vdev", "xvdb"];
  const created = host.xentool(0, "blkback", "create", ...device, "--params", `${prefix}${image}`);
  expect(await finished(created)).toMatchObject({ status: 0, stderr: "" });
  const qemu = startQemu(host);
  const disk = await exportDisk(host, qemu, "xvdb");
  const copy = await written(disk, "image", 1);
  await endDisks([disk], qemu);
  await run("qemu-img", "compare", "-f", "raw", "-F", format, copy, image);
  const destroyed = host.xentool(0, "blkback", "destroy", ...device);
  expect(await finished(destroyed)).toMatchObject({ status: 0, stderr: "" });
});

test.each(["QEMU", "the frontend"])("%s is killed while fio writes", async (killed) => {
  const image = host.file("xvda");
  writeFileSync(image, new Uint8Array(DISK_BYTES));
  const qemu = startQemu(host, ...drive("xvda", "raw", "xen-disk"));
  const disk = await exportDisk(host, qemu, "xvda");
  const load = fio(disk.uri, "--rw=randwrite", "--bs=4k", "--iodepth=32", "--time_based", "--runtime=600");
  host.started(start([...load, "--size=8M"], { cwd: host.dir }));
  while (readFileSync(image).every((byte) => byte === 0)) await Bun.sleep(1);
  const victim = killed === "QEMU" ? qemu.child : disk.front;
  victim.kill("SIGKILL");
  await victim.exited;
  if (killed === "QEMU") return;
  const next = await exportDisk(host, qemu, "xvda");
  const copy = await written(next, "xvda", 1);
  await endDisks([next], qemu);
  await run("qemu-img", "compare", "-f", "raw", "-F", "raw", copy, image);
});
