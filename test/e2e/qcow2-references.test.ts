// A guest that has taken over the process of its disks can write all of its qcow2, the header, too, and make it name
// any file of the host. The image is then served to nobody, not even when its storage daemon is started again, and
// other images are. `--in-place no` keeps the image's file from such a process.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { closeSync, openSync, readdirSync, readFileSync, readlinkSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import { backendDir, DEFAULT_KIND, type DeviceAddress } from "../../src/blkback/address.ts";
import { createDevice } from "../../src/blkback/toolstack.ts";
import { toDomid } from "../../src/core/types.ts";
import { parseVdev } from "../../src/protocol/blkif.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { readUntil, type Child } from "../support/process.ts";
import { judge, ProgramDisks, programItself, untilNone } from "./program-disks.ts";

const DAEMON = "qemu-storage-daemon";

let world: ProgramDisks;
let image: string;
let notes: string;
beforeEach(async () => {
  world = await ProgramDisks.start({ "disk.img": new Uint8Array(1 << 20).fill(5) });
  image = world.path("disk.qcow2");
  await judge("qemu-img", "convert", "-q", "-O", "qcow2", world.path("disk.img"), image);
  notes = join(world.disks.host.dir, "blkback.references");
});
afterEach(() => world.close());

/** As a process could that has the image open. */
const makeName = (backing: string, of = image): Promise<string> =>
  judge("qemu-img", "rebase", "-u", "-b", backing, "-F", "raw", of);

function writeHeader(header: Uint8Array): void {
  const fd = openSync(image, "r+");
  writeSync(fd, header, 0, header.length, 0);
  closeSync(fd);
}

const words = (backing: string): string =>
  `${image} names backing file ${backing} (raw), but named no other file when it was last opened for a guest`;

test("serve: refused at once, and other images are served; removing the note accepts it", async () => {
  const args = ["--format", "qcow2"] as const;
  for (let round = 0; round < 2; round++) {
    const disk = await world.connect(image, "xvdb", ...args);
    expect(await disk.guest.write(8, round)).toBe(0);
    expect(await disk.end()).toBe(143);
  }
  await makeName("/etc/hostname");
  const asked = ["blkback", "serve", image, "--domid", "1", "--vdev", "xvdb", ...args];
  for (const how of [[], ["--mode", "r"], ["--in-place", "no"]]) {
    const refused = await world.run([...asked, ...how]);
    expect(refused.stderr).toContain(words("/etc/hostname"));
    expect(refused.status).toBe(3);
  }
  const other = world.path("other.qcow2");
  await judge("qemu-img", "create", "-q", "-f", "qcow2", other, "1M");
  expect(await (await world.connect(other, "xvdc", ...args)).end()).toBe(143);
  const { stderr } = await world.run(asked);
  const [, note = ""] = /remove (\S+)/.exec(stderr) ?? [];
  expect(note).toStartWith(`${notes}/`);
  rmSync(note);
  const accepted = await world.connect(image, "xvdb", ...args);
  expect(await accepted.guest.read(8)).toEqual(new Uint8Array(4096).fill(1));
  expect(await accepted.end()).toBe(143);
});

test("the daemon is not started again for it", async () => {
  const disk = await world.connect(image, "xvdb", "--format", "qcow2");
  const header = readFileSync(image).subarray(0, 64 << 10);
  const program = programItself(DAEMON, image);
  // The image is locked against those who ask.
  const copy = world.path("copy.qcow2");
  await Bun.write(copy, readFileSync(image));
  await makeName("/etc/hostname", copy);
  writeHeader(readFileSync(copy).subarray(0, header.length));
  process.kill(program, "SIGKILL");
  await readUntil(disk.server.stderr, `cannot be started: ${words("/etc/hostname")}`);
  const written = await world.run(["blkback", "list"]);
  expect(written.stdout).toContain("names backing file /etc/hostname (raw)");
  writeHeader(header);
  await readUntil(disk.server.stderr, "it is served now");
  expect(await disk.guest.read(8)).toEqual(new Uint8Array(4096).fill(5));
  expect(await disk.end()).toBe(143);
});

/** Of the process of the guest of `watch`: whether it has the image open. */
function hasImage(watch: Child): boolean {
  const children = readFileSync(`/proc/${watch.pid}/task/${watch.pid}/children`, "utf8").trim().split(" ");
  return children.some((pid) => {
    const [command = ""] = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
    // Not the shell that keeps the daemon.
    if (command.endsWith("/sh")) return false;
    return readdirSync(`/proc/${pid}/fd`).some((fd) => {
      try {
        return readlinkSync(`/proc/${pid}/fd/${fd}`) === image;
      } catch {
        return false; // it has been closed
      }
    });
  });
}

test.each(["yes", "no"])("watch --in-place %s", async (inPlace) => {
  const at = (vdev: string): DeviceAddress => ({
    backend: toDomid(0),
    frontend: toDomid(1),
    kind: DEFAULT_KIND,
    devid: Number(parseVdev(vdev)),
  });
  const dom0 = world.disks.host.platform(0);
  const xenstore = await Xenstore.connect(dom0);
  const watch = world.spawn([
    "-v",
    "blkback",
    "watch",
    "--kind",
    DEFAULT_KIND,
    "--any-script",
    "--in-place",
    inPlace,
  ]);
  const attach = (vdev: string, path: string): Promise<unknown> =>
    createDevice(xenstore, {
      address: at(vdev),
      readOnly: false,
      deviceType: "disk",
      params: `qcow2:${path}`,
    });
  await attach("xvdb", image);
  const guest = await world.guest("xvdb");
  expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(5));
  expect(hasImage(watch)).toBe(inPlace === "yes");
  await guest.setState(6);
  guest.close();
  await world.run(["blkback", "destroy", "--domid", "1", "--vdev", "xvdb"]);
  await untilNone(image);
  await makeName(world.path("disk.img"));
  await attach("xvdb", image);
  if (inPlace === "no") {
    const status = `${backendDir(at("xvdb"))}/hotplug-status`;
    await xenstore.waitFor(status, (value) => value === "connected");
  } else {
    const reason = words(world.path("disk.img"));
    const node = `${backendDir(at("xvdb"))}/hotplug-error`;
    await xenstore.waitFor(node, (value) => value?.includes(reason) === true);
    const other = world.path("other.qcow2");
    await judge("qemu-img", "create", "-q", "-f", "qcow2", other, "1M");
    await attach("xvdc", other);
    const neighbour = await world.guest("xvdc");
    expect(await neighbour.write(8, 1)).toBe(0);
    await neighbour.setState(6);
    neighbour.close();
    await world.run(["blkback", "destroy", "--domid", "1", "--vdev", "xvdc"]);
  }
  await world.run(["blkback", "destroy", "--domid", "1", "--vdev", "xvdb"]);
  watch.kill("SIGTERM");
  await watch.exited;
  await untilNone(world.disks.dir);
  xenstore.close();
  dom0.close();
});
