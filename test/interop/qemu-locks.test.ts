// QEMU's tools, unmodified, beside a server of the same image: whoever is first keeps the other out, readers
// included when somebody writes. QEMU's file driver looks for read locks on bytes 100 and 200 and following, and
// holds some itself (block/file-posix.c); Debian's 7.2 is what the figures in src/block/image/claim.ts were checked
// against.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { SimHost } from "../../src/sim/host.ts";
import { runXentool, spawnXentool } from "../e2e/executable.ts";
import { readUntil, run } from "../support/process.ts";
import { HostDevices } from "../e2e/host-devices.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

let dir: string;
let host: SimHost;
let env: Record<string, string>;
let devices: HostDevices;
const running: Bun.Subprocess[] = [];

beforeEach(async () => {
  dir = temporaryDirectory();
  writeFileSync(join(dir, "disk.img"), new Uint8Array(1 << 20));
  host = await SimHost.start();
  env = { XENTOOL_SIM: host.dir };
  devices = new HostDevices();
});

afterEach(async () => {
  for (const child of running.splice(0).reverse()) {
    child.kill("SIGTERM");
    await child.exited;
  }
  devices.remove();
  const left = await host.settle();
  await host.stop();
  removeDirectory(dir);
  expect(left).toEqual([]);
});

function serving(path: string, mode: string): string[] {
  return ["blkback", "serve", path, "--domid", "1", "--vdev", "xvdb", "--mode", mode];
}

async function serve(path: string, mode: string): Promise<void> {
  const server = spawnXentool(serving(path, mode), { env });
  running.push(server);
  await readUntil(server.stderr, "offering");
}

async function outcome(...argv: string[]): Promise<{ status: number; output: string }> {
  const { status, stdout, stderr } = await run(argv);
  return { status, output: stdout + stderr };
}

const io = (path: string, ...options: string[]): Promise<{ status: number; output: string }> =>
  outcome(
    "qemu-io",
    "-f",
    "raw",
    ...options,
    "-c",
    options.includes("-r") ? "read 0 512" : "write 0 512",
    path,
  );

/** qemu-nbd, once it has the image; undefined when it did not get it. */
async function nbd(path: string, ...options: string[]): Promise<Bun.Subprocess | undefined> {
  const socket = join(dir, "nbd");
  rmSync(socket, { force: true });
  const argv = ["qemu-nbd", "-f", "raw", ...options, "--persistent", "--socket", socket, path];
  const child = Bun.spawn(argv, { stdio: ["ignore", "ignore", "ignore"] });
  running.push(child);
  // It listens before it opens the image, but greets only afterwards.
  return (await greeted(child, socket)) ? child : undefined;
}

/** False: qemu-nbd has ended. Its socket is there before it listens, so that one connection may not be enough. */
async function greeted(child: Bun.Subprocess, path: string): Promise<boolean> {
  while (child.exitCode === null) {
    if (existsSync(path) && (await greets(path))) return true;
    await Bun.sleep(5);
  }
  return false;
}

async function greets(path: string): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const socket = connect(path, () => {});
  socket.on("data", () => resolve(true));
  for (const end of ["error", "close"]) socket.on(end, () => resolve(false));
  const answer = await promise;
  socket.destroy();
  return answer;
}

describe.each(["a file", "a block device"])("%s", (what) => {
  const image = (): string => {
    const file = join(dir, "disk.img");
    return what === "a file" ? file : devices.loop(file);
  };

  test("that is served for writing: qemu-io and qemu-nbd neither write nor read it", async () => {
    const path = image();
    await serve(path, "w");
    for (const options of [[], ["-r"]]) {
      const { status, output } = await io(path, ...options);
      expect(status).not.toBe(0);
      expect(output).toContain('Failed to get "consistent read" lock');
      expect(await nbd(path, ...options)).toBeUndefined();
    }
    expect(await outcome("qemu-img", "info", "--force-share", path)).toMatchObject({ status: 0 });
  });

  test("that is served for reading: QEMU reads it, too, and does not write it", async () => {
    const path = image();
    await serve(path, "r");
    expect((await io(path)).output).toContain('Failed to get "write" lock');
    expect(await nbd(path)).toBeUndefined();
    expect(await io(path, "-r")).toMatchObject({ status: 0 });
    expect(await nbd(path, "-r")).toBeDefined();
  });

  test("that is served for sharing: QEMU gets it when it shares it as well", async () => {
    const path = image();
    await serve(path, "w!");
    expect(await io(path)).toMatchObject({ status: 0 });
  });

  test.each([
    [[], "w", true],
    [[], "r", true],
    [["-r"], "w", true],
    [["-r"], "r", false],
    [[], "w!", false],
  ] as const)(
    "that qemu-nbd %p has: serving it with mode %s is refused: %p",
    async (options, mode, isRefused) => {
      const path = image();
      const holder = await nbd(path, ...options);
      if (!isRefused) return serve(path, mode);
      const { status, stderr } = await runXentool(serving(path, mode), { env });
      expect([status, stderr]).toEqual([
        3,
        expect.stringContaining(`in use: process ${holder?.pid}, qemu-nbd;`),
      ]);
    },
  );
});

test("a disk that QEMU has is served once QEMU lets go, if that is soon", async () => {
  const path = join(dir, "disk.img");
  const holder = await nbd(path);
  const server = spawnXentool(["-v", ...serving(path, "w")], { env });
  running.push(server);
  await readUntil(server.stderr, `waiting: ${path} is in use: process ${holder?.pid}, qemu-nbd`);
  holder?.kill("SIGTERM");
  await readUntil(server.stderr, "offering");
});
