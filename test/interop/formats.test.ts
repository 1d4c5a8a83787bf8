// Images in QEMU's formats, served through qemu-storage-daemon by the executable to a guest by hand; qemu-img compares
// and checks them.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { judge, ProgramDisks, untilNone, untilProgram } from "../e2e/program-disks.ts";
import { readUntil, run } from "../support/process.ts";

const SIZE = 8 << 20;
const DAEMON = "qemu-storage-daemon";
const AT = ["--domid", "1", "--vdev", "xvdb"];
const KILLS = Number(process.env["KILLS"] ?? 3);
const LOAD = [
  "--bs=4k",
  "--size=12M",
  "--iodepth=16",
  "--rw=randwrite",
  "--fsync=64",
  "--rate_iops=4000",
].concat(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]);
const PASSPHRASE = "open sesame";
let world: ProgramDisks;
beforeEach(async () => {
  world = await ProgramDisks.start();
});
afterEach(() => world.close());

/** `qemu` is the format as qemu-img names it. */
const FORMATS = [
  { name: "qcow2", qemu: "qcow2", options: [] },
  { name: "qed", qemu: "qed", options: [] },
  { name: "vhd", qemu: "vpc", options: ["-o", "force_size=on"] },
  { name: "vhdx", qemu: "vhdx", options: [] },
  { name: "vmdk", qemu: "vmdk", options: [] },
  { name: "vdi", qemu: "vdi", options: [] },
  { name: "parallels", qemu: "parallels", options: [] },
] as const;

test("what a guest writes is in the image, as the format's own tools read it", async () => {
  const expected = new Uint8Array(SIZE);
  const raw = world.path("expected.img");
  const vdevs = FORMATS.map((_, index) => `xvd${"abcdefgh"[index]}`);
  const disks = await Promise.all(
    FORMATS.map(async ({ name, qemu, options }, index) => {
      const image = world.path(`disk.${name}`);
      await judge("qemu-img", "create", "-q", "-f", qemu, ...options, image, String(SIZE));
      return world.connect(image, vdevs[index] ?? "", "--format", name);
    }),
  );
  for (const [sector, byte] of [
    [0, 1],
    [8, 2],
    [9000, 3],
    [SIZE / 512 - 8, 4],
  ] as const) {
    for (const { guest } of disks) expect(await guest.write(sector, byte)).toBe(0);
    expected.fill(byte, sector * 512, sector * 512 + 4096);
  }
  writeFileSync(raw, expected);
  for (const { guest } of disks) {
    expect(await guest.flush()).toBe(0);
    expect(await guest.read(9000)).toEqual(new Uint8Array(4096).fill(3));
  }
  for (const { end } of disks) expect(await end()).toBe(143);
  for (const { name, qemu } of FORMATS)
    await judge("qemu-img", "compare", "-q", "-f", "raw", "-F", qemu, raw, world.path(`disk.${name}`));
  for (const name of ["qcow2", "vhdx", "vdi"])
    await judge("qemu-img", "check", "-q", "-f", name, world.path(`disk.${name}`));
}, 120_000);

test("a vmdk that is a text beside its extent, of no whole number of sectors", async () => {
  const image = world.path("disk.vmdk");
  await judge(
    "qemu-img",
    "create",
    "-q",
    "-f",
    "vmdk",
    "-o",
    "subformat=monolithicFlat",
    image,
    String(SIZE),
  );
  expect(statSync(image).size % 512).not.toBe(0);
  const { guest, end } = await world.connect(image, "xvdb", "--format", "vmdk");
  expect(await guest.write(8, 7)).toBe(0);
  expect(await guest.flush()).toBe(0);
  expect(await end()).toBe(143);
  const extent = readFileSync(world.path("disk-flat.vmdk"));
  expect(extent.subarray(4096, 8192).every((it) => it === 7)).toBe(true);
}, 60_000);

test.each(["yes", "no"])(
  "a qcow2 that was cut within a sector, in place: %s",
  async (inPlace) => {
    const image = world.path("disk.qcow2");
    const raw = world.path("raw.img");
    writeFileSync(raw, new Uint8Array(2 << 20).fill(5));
    await judge("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", raw, image);
    truncateSync(image, statSync(image).size - 30_001);
    const { guest, end } = await world.connect(image, "xvdb", "--format", "qcow2", "--in-place", inPlace);
    const cluster = ((2 << 20) - 65_536) / 512;
    // QEMU takes what is missing for zeroes.
    const across = new Uint8Array(4096);
    across.fill(5, 0, 65_536 - 30_001 - 32_768);
    expect(await guest.read(cluster + 64)).toEqual(across);
    expect(await guest.read(cluster)).toEqual(new Uint8Array(4096).fill(5));
    expect(await end()).toBe(143);
  },
  60_000,
);

test("luks: with the passphrase of a file", async () => {
  const [image, key] = [world.path("disk.luks"), world.path("key")];
  writeFileSync(key, PASSPHRASE);
  const secret = ["--object", `secret,id=key,file=${key}`];
  const quick = "key-secret=key,iter-time=10";
  const create = ["qemu-img", "create", "-q", ...secret, "-f", "luks", "-o", quick, image, String(SIZE)];
  // qemu-img first measures how fast it derives keys, by its thread's processor time, and gives up when that seems not
  // to have moved: one time in ten where the kernel counts processor time in ticks. It says so, and is asked again.
  let created = await run(create);
  while (created.stderr.includes("Unable to get accurate CPU usage")) created = await run(create);
  expect(created).toMatchObject({ status: 0, stderr: "" });
  const serve = ["blkback", "serve", image, "--domid", "1", "--vdev", "xvdb", "--format", "luks"];
  expect((await world.run(serve)).stderr).toContain("--key-file");
  const disk = await world.connect(image, "xvdb", "--format", "luks", "--key-file", key);
  expect(await disk.guest.write(0, 9)).toBe(0);
  expect(await disk.end()).toBe(143);
  const source = `driver=luks,key-secret=key,file.filename=${image}`;
  const clear = world.path("clear.img");
  await judge("qemu-img", "convert", "-q", ...secret, "--image-opts", "-O", "raw", source, clear);
  // Elsewhere is what zeroes decrypt to.
  expect(readFileSync(clear).subarray(0, 4096)).toEqual(Buffer.alloc(4096, 9));
}, 120_000);

test.each([[[]], [["--direct"]]])("a guest's trims reach a qcow2 %j", async (options) => {
  const image = world.path("disk.qcow2");
  await judge("qemu-img", "create", "-q", "-f", "qcow2", image, "32M");
  const server = await world.serve(image, "xvdb", "--format", "qcow2", ...options);
  const socket = world.path("front.sock");
  const front = world.spawn(["blkfront", "nbd", "--vdev", "xvdb", "--socket", socket], {
    XENTOOL_DOMID: "1",
  });
  await readUntil(front.stderr, "serving");
  const uri = `nbd+unix:///?socket=${socket}`;
  const io = (...commands: readonly string[]): Promise<string> =>
    judge("qemu-io", "-f", "raw", ...commands.flatMap((it) => ["-c", it]), uri);
  await io("write -q -P 7 0 16M", "flush");
  const full = statSync(image).blocks;
  expect(full * 512).toBeGreaterThanOrEqual(16 << 20);
  await io("discard -q 0 15M", "flush", "read -q -P 7 15M 1M");
  expect(statSync(image).blocks * 512).toBeLessThan(4 << 20);
  front.kill("SIGTERM");
  await front.exited;
  server.kill("SIGTERM");
  expect(await server.exited).toBe(143);
  await judge("qemu-img", "check", "-q", image);
});

test("the daemon keeps its memory between large requests", async () => {
  const image = world.path("disk.qcow2");
  await judge("qemu-img", "create", "-q", "-f", "qcow2", image, "32M");
  const server = await world.serve(image, "xvdb", "--format", "qcow2");
  const socket = world.path("front.sock");
  const front = world.spawn(["blkfront", "nbd", "--vdev", "xvdb", "--socket", socket], {
    XENTOOL_DOMID: "1",
  });
  await readUntil(front.stderr, "serving");
  const uri = `nbd+unix:///?socket=${socket}`;
  const io = (...commands: readonly string[]): Promise<string> =>
    judge("qemu-io", "-f", "raw", ...commands.flatMap((it) => ["-c", it]), uri);
  // What was never written is read without memory for it.
  await io("write -q -P 7 0 16M");
  const daemon = await untilProgram(DAEMON, image);
  const before = faultsOf(daemon);
  const times = 64;
  await io(...Array.from({ length: times }, () => "read -q -P 7 0 1M"));
  // One for every page that was read, if memory is mapped anew for each request.
  expect(faultsOf(daemon) - before).toBeLessThan((times * 256) / 4);
  front.kill("SIGTERM");
  await front.exited;
  server.kill("SIGTERM");
  expect(await server.exited).toBe(143);
});

test("the daemon of a qcow2 is killed again and again under verified load, with its server and alone: nothing is lost", async () => {
  const image = world.path("disk.qcow2");
  await judge("qemu-img", "create", "-q", "-f", "qcow2", image, "64M");
  let server = await world.serve(image, "xvdb", "--format", "qcow2");
  const socket = world.path("front.sock");
  const front = world.spawn(["blkfront", "nbd", "--vdev", "xvdb", "--socket", socket], {
    XENTOOL_DOMID: "1",
  });
  await readUntil(front.stderr, "serving");
  const uri = `nbd+unix:///?socket=${socket}`;
  const load = judge("fio", "--name=disk", "--ioengine=nbd", `--uri=${uri}`, ...LOAD);
  for (let kills = 0; kills < KILLS; kills++) {
    process.kill(await untilProgram(DAEMON, image), "SIGKILL");
    if (kills % 3 === 2) {
      server.kill("SIGKILL");
      await server.exited;
      await untilNone(image);
      server = world.spawn(["-v", "blkback", "serve", image, ...AT, "--format", "qcow2"]);
      await readUntil(server.stderr, "taking over");
    } else await readUntil(server.stderr, "it is served now");
    await untilWritten(image);
  }
  await load;
  front.kill("SIGTERM");
  await front.exited;
  server.kill("SIGTERM");
  expect(await server.exited).toBe(143);
  // A daemon that was killed may leave clusters that nobody uses (status 3). They are no error of the data.
  const check = await run(["qemu-img", "check", "-q", image]);
  expect([0, 3]).toContain(check.status);
});

async function untilWritten(image: string): Promise<void> {
  const before = statSync(image).mtimeMs;
  while (statSync(image).mtimeMs === before) await Bun.sleep(1);
}

/** How often a process was given a page. */
function faultsOf(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").replace(/^.*\) /, "");
  return Number(fields.split(" ")[7]);
}
