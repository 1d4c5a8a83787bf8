// strace as the judge of what a server leaves to one that works in another way. What was written in place is in the
// page cache, and QEMU's storage daemon flushes nothing as long as it has written nothing itself.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { executable } from "../e2e/executable.ts";
import { detach } from "../e2e/disk-host.ts";
import { judge, ProgramDisks, programItself } from "../e2e/program-disks.ts";
import { readUntil, start } from "../support/process.ts";

const SIZE = 1 << 20;

let world: ProgramDisks;
beforeEach(async () => {
  world = await ProgramDisks.start({ "disk.img": new Uint8Array(SIZE).fill(5) });
});
afterEach(() => world.close());

test("a guest's flush is for what it wrote in place before, also when its next server leaves all to the daemon", async () => {
  const image = world.path("disk.qcow2");
  await judge("qemu-img", "convert", "-q", "-O", "qcow2", world.path("disk.img"), image);
  const former = await world.connect(image, "xvdb", "--format", "qcow2");
  const { guest } = former;
  for (let i = 0; i < 8; i++) await guest.read(0);
  const daemon = programItself("qemu-storage-daemon", image);
  process.kill(daemon, "SIGSTOP");
  expect(await guest.write(0, 6)).toBe(0);
  process.kill(daemon, "SIGCONT");
  former.server.kill("SIGKILL");
  await former.server.exited;

  const trace = world.path("trace");
  const traced = [
    "strace",
    "-D",
    "-f",
    "-y",
    "-qq",
    "-e",
    "trace=fsync,fdatasync",
    "-e",
    "signal=none",
    "-o",
    trace,
  ];
  const serve = ["blkback", "serve", image, "--domid", "1", "--vdev", "xvdb", "--format", "qcow2"];
  const successor = start([...traced, executable, "-v", ...serve, "--in-place", "no"], {
    env: { ...process.env, ...world.disks.env },
  });
  await readUntil(successor.stderr, "the guest is connected");
  expect(await guest.flush()).toBe(0);
  const synced = existsSync(trace) ? readFileSync(trace, "utf8") : "";
  expect(await detach(successor, guest)).toBe(143);
  expect(synced).toContain(image);
});
