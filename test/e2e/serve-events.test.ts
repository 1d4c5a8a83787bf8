// What serve and watch say while they serve: one line each when something changes for the guest, and nothing else.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { truncateSync } from "node:fs";
import { join } from "node:path";
import type { SimHost } from "../../src/sim/host.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { runXentool, spawnXentool } from "./executable.ts";
import { readUntil } from "../support/process.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { DiskHost } from "./disk-host.ts";

const DEVICE = diskAddress(1);
const NAMED = ["--domid", "1", "--vdev", "xvdb"];
const DISK = "xentool: xvdb of domain 1:";

let ground: DiskHost;
let dir: string;
let host: SimHost;
let env: DiskHost["env"];

beforeEach(async () => {
  ground = await DiskHost.start();
  ({ dir, host, env } = ground);
});
afterEach(() => ground.close());

/** Collects a stream's lines while it goes on; `until` waits for one that contains `text`. */
class Lines {
  readonly #stream: ReadableStream<Uint8Array>;
  #text = "";

  constructor(stream: ReadableStream<Uint8Array>) {
    this.#stream = stream;
  }

  async until(text: string): Promise<void> {
    if (!this.#text.includes(text)) this.#text += await readUntil(this.#stream, text);
  }

  async all(): Promise<string[]> {
    const decoder = new TextDecoder();
    for await (const bytes of this.#stream) this.#text += decoder.decode(bytes, { stream: true });
    return this.#text.trimEnd().split("\n");
  }
}

const resize = async (bytes: number): Promise<void> => {
  truncateSync(join(dir, "a.img"), bytes);
  await runXentool(["blkback", "resize", ...NAMED], { env });
};

/** Connects, lets go, comes back, and lets go when it is asked to. */
async function life(lines: Lines, end: () => void): Promise<void> {
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  await lines.until("connected");
  await resize(2 << 20);
  await resize(1 << 20);
  await guest.setState(5);
  await guest.untilBackend(5);
  await guest.setState(6);
  await guest.untilBackend(6);
  await guest.setState(1);
  await guest.connect();
  end();
  await guest.untilBackend(5);
  await guest.setState(6);
  await guest.untilBackend(6).catch(() => {}); // the device may be gone already
  guest.close();
}

test("serve, in words", async () => {
  const image = join(dir, "a.img");
  const server = spawnXentool(["blkback", "serve", image, ...NAMED], { env });
  const lines = new Lines(server.stderr);
  await lines.until("offering");
  await life(lines, () => server.kill("SIGTERM"));
  await server.exited;
  expect(await lines.all()).toEqual([
    `xentool: offering ${image} as xvdb of domain 1; waiting for the guest`,
    `${DISK} the guest is connected`,
    `${DISK} the disk grew from 2048 to 4096 sectors`,
    "xentool: warning: xvdb of domain 1: the disk shrank from 4096 to 2048 sectors: " +
      "data beyond the new end is lost, and the guest may still need it",
    `${DISK} the guest has let go`,
    `${DISK} waiting for the guest`,
    `${DISK} the guest is connected`,
    `${DISK} asking the guest to let go, for up to 10 s; Ctrl-C again leaves it`,
    `${DISK} the guest has let go`,
  ]);
});

test("serve --json, an object a line", async () => {
  const image = join(dir, "a.img");
  const server = spawnXentool(["blkback", "serve", image, ...NAMED, "--json"], { env });
  const lines = new Lines(server.stdout);
  await lines.until("offered");
  await life(lines, () => server.kill("SIGTERM"));
  await server.exited;
  const device = { domid: 1, vdev: "xvdb" };
  expect((await lines.all()).map((line) => JSON.parse(line) as unknown)).toEqual([
    { event: "offered", ...device, kind: "qdisk", image },
    { event: "connected", ...device },
    { event: "resized", ...device, sectorsBefore: 2048, sectorsOfImage: 4096 },
    { event: "resized", ...device, sectorsBefore: 4096, sectorsOfImage: 2048 },
    { event: "released", ...device },
    { event: "waiting", ...device },
    { event: "connected", ...device },
    { event: "closing", ...device },
    { event: "released", ...device },
    { event: "ended", reason: "closed" },
  ]);
});

test("serve of a disk that no guest has used asks nobody to let go", async () => {
  const image = join(dir, "a.img");
  const server = spawnXentool(["blkback", "serve", image, ...NAMED], { env });
  const lines = new Lines(server.stderr);
  await lines.until("offering");
  server.kill("SIGTERM");
  await server.exited;
  expect(await lines.all()).toEqual([
    `xentool: offering ${image} as xvdb of domain 1; waiting for the guest`,
  ]);
});

test("watch, of each of its disks", async () => {
  const server = spawnXentool(["blkback", "watch", "--kind", "qdisk", "--any-script"], { env });
  const lines = new Lines(server.stderr);
  await lines.until("serving");
  await runXentool(["blkback", "create", ...NAMED, "--params", join(dir, "a.img")], { env });
  const closing: Promise<unknown>[] = [];
  await life(lines, () => closing.push(runXentool(["blkback", "close", ...NAMED], { env })));
  await Promise.all(closing);
  await runXentool(["blkback", "destroy", ...NAMED], { env });
  server.kill("SIGTERM");
  await server.exited;
  expect(await lines.all()).toEqual([
    "xentool: serving the disks of kind qdisk",
    `${DISK} waiting for the guest`,
    `${DISK} the guest is connected`,
    `${DISK} the disk grew from 2048 to 4096 sectors`,
    expect.stringContaining("xentool: warning: xvdb of domain 1: the disk shrank") as string,
    `${DISK} the guest has let go`,
    `${DISK} waiting for the guest`,
    `${DISK} the guest is connected`,
    `${DISK} asking the guest to let go`,
    `${DISK} the guest has let go`,
  ]);
});

test("the first failed I/O has a line, and later ones of its kind do not", async () => {
  const image = join(dir, "a.img");
  const server = spawnXentool(["blkback", "serve", image, ...NAMED, "--filter", "error:op=read"], { env });
  const lines = new Lines(server.stderr);
  await lines.until("offering");
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  for (let i = 0; i < 3; i++) expect(await guest.read(8 * i)).toBe(-1);
  server.kill("SIGTERM");
  await guest.untilBackend(5);
  await guest.setState(6);
  await server.exited;
  guest.close();
  expect((await lines.all()).filter((line) => line.includes("failed"))).toEqual([
    `${DISK} blkback: error: read of 8 sectors at sector 0 failed: EIO: i/o error`,
  ]);
});

test("list says why a disk is not served", async () => {
  const server = spawnXentool(["blkback", "watch", "--kind", "qdisk", "--any-script"], { env });
  await readUntil(server.stderr, "serving");
  const list = async (): Promise<string> => (await runXentool(["blkback", "list"], { env })).stdout;
  await runXentool(["blkback", "create", ...NAMED, "--params", join(dir, "none.img")], { env });
  await readUntil(server.stderr, "none.img");
  expect(await list()).toContain(`xvdb of domain 1: cannot open ${join(dir, "none.img")}: ENOENT`);
  await runXentool(["blkback", "destroy", ...NAMED], { env });
  await runXentool(["blkback", "create", ...NAMED, "--params", join(dir, "a.img")], { env });
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  expect(await list()).toMatch(/^1 +xvdb +qdisk +Connected +Connected +w +1 MiB +raw +\/.*a\.img\n$/m);
  server.kill("SIGKILL");
  await server.exited;
  expect(await list()).toContain("xvdb of domain 1: nobody serves it: its server is gone");
  guest.close();
  await runXentool(["blkback", "destroy", ...NAMED], { env });
});
