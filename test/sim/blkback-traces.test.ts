// Every golden trace in test/traces is played against a served device, up to I/O that is compared. A frontend is added
// by adding a file there; test/traces/README.md says how.
import { afterEach, beforeEach, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { BlkbackDevice } from "../../src/blkback/device/device.ts";
import { closeDevice } from "../../src/blkback/toolstack.ts";
import { diskAddress, DiskWorld } from "./disk-world.ts";
import { queuesOf, readTrace, TracePlayer } from "./trace-player.ts";

const TRACES = new URL("../traces/", import.meta.url).pathname;
const address = diskAddress(1);

let world: DiskWorld;

beforeEach(async () => {
  world = await DiskWorld.start({ domains: 2, personality: "xenstored-4.22" });
  await world.create(address);
});

afterEach(() => world.close());

const traces = readdirSync(TRACES).filter((name) => name.endsWith(".trace"));

test.each(
  (["copy", "persistent"] as const).flatMap((grantMode) => traces.map((name) => [name, grantMode] as const)),
)("%s, --grants %s", async (name, grantMode) => {
  const steps = readTrace(readFileSync(join(TRACES, name), "utf8"));
  let device: BlkbackDevice | undefined;
  const startServer = async (): Promise<void> => {
    const offer = { ...world.options.offer, maxQueues: queuesOf(steps) };
    device = await world.serve(address, { offer, grantMode, filters: ["assert"] });
  };
  const player = await TracePlayer.start({
    host: world.host,
    address,
    imagePath: world.image.path,
    startServer,
    stopServer: () => world.abandonAll(),
    close: () => closeDevice(world.xenstore, address),
    ended: async () => String(await device?.ended),
  });
  try {
    if (!steps.some(({ verb }) => verb === "server")) await startServer();
    await player.play(steps);
  } finally {
    await world.abandonAll();
    player.close();
  }
});
