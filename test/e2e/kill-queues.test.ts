// A disk used through one, two and four queues by our frontend, whose server is killed under load, replaced by one
// that offers another number, has another number of threads and moves data in another way, resized and disconnected:
// each byte is what was written, and nothing is left.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DEFAULT_KIND, frontendDir } from "../../src/blkback/address.ts";
import { resizeDevice } from "../../src/blkback/device/resize.ts";
import { closeDevice } from "../../src/blkback/toolstack.ts";
import { toDomid } from "../../src/core/types.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { pattern } from "../sim/blk-harness.ts";
import { BlockFrontend } from "../sim/block-frontend.ts";
import { compareUnderLoad } from "../sim/block-load.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { spawnXentool } from "./executable.ts";
import { readUntil } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const IMAGE_BYTES = 2 << 20;
const KILLS = 5;
/** Between two kills. */
const ANSWERS = 40;
/** Slowly, so that more is under way when the server is killed; or by several threads. */
const WAYS = [
  ["--filter", "delay:ms=1"],
  ["--threads", "2"],
  ["--threads", "4"],
];
const GRANTS = ["copy", "map", "persistent"];
const XVDB = 51728;
const address = { backend: toDomid(0), frontend: toDomid(1), kind: DEFAULT_KIND, devid: XVDB };

let host: SimHost;
let guest: SimPlatform;
let dom0: SimPlatform;
let xenstore: Xenstore;
let dir: string;
let image: string;
let server: ReturnType<typeof spawnXentool> | undefined;

async function serve(maxQueues: number, ...options: string[]): Promise<ReturnType<typeof spawnXentool>> {
  const at = ["--domid", "1", "--vdev", "xvdb", "--max-queues", String(maxQueues), ...options];
  const env = { XENTOOL_SIM: host.dir, XENTOOL_DOMID: "0" };
  server = spawnXentool(["blkback", "serve", image, ...at], { env });
  await readUntil(server.stderr, "offering");
  return server;
}

async function kill(): Promise<void> {
  server?.kill("SIGKILL");
  await server?.exited;
}

beforeEach(async () => {
  host = await SimHost.start({ domains: 2 });
  guest = host.platform(1);
  dom0 = host.platform(0);
  xenstore = await Xenstore.connect(dom0);
  dir = temporaryDirectory();
  image = join(dir, "disk.img");
  writeFileSync(image, pattern(IMAGE_BYTES));
});

afterEach(async () => {
  await kill();
  xenstore.close();
  guest.close();
  dom0.close();
  removeDirectory(dir);
  expect(await host.settle()).toEqual([]);
  await host.stop();
});

test.each([1, 2, 4])("%i queues", async (queues) => {
  const seed = chosenSeed();
  console.log(`kill-queues: SEED=${seed}`);
  const random = new Random(seed);
  const how = (): string[] => [...random.pick(WAYS), "--grants", random.pick(GRANTS)];
  await serve(4, ...how());
  const frontend = await BlockFrontend.connect(guest, "xvdb", { queues });
  expect(frontend.queues).toBe(queues);
  const copy = readFileSync(image);
  let isOver = false;
  let answers = 0;
  const loading = compareUnderLoad(frontend, copy, random, () => {
    answers++;
    return isOver;
  });
  for (let kills = 0; kills < KILLS; kills++) {
    const goal = answers + random.below(ANSWERS);
    while (answers < goal) await Bun.sleep(1);
    await kill();
    await serve(random.pick([1, 2, 4]), ...how());
  }
  isOver = true;
  await loading;
  expect(Buffer.compare(readFileSync(image), copy)).toBe(0);
  truncateSync(image, 2 * IMAGE_BYTES);
  await resizeDevice(xenstore, address);
  while (frontend.disk.sectors512 !== (2 * IMAGE_BYTES) / 512) await Bun.sleep(1);
  await frontend.write(2 * IMAGE_BYTES - 4096, new Uint8Array(4096).fill(7));
  await closeDevice(xenstore, address);
  await frontend.backendClosing;
  await frontend.close();
  expect(await server?.exited).toBe(0);
  expect(await xenstore.exists(frontendDir(address))).toBe(false);
  expect(readdirSync(join(host.dir, "blkback"))).toEqual([]);
  expect(readFileSync(image).at(-1)).toBe(7);
});
