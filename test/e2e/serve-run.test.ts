// The command of `blkback serve --run`: it ends the server, and the server's end is its own, however that comes.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { SimHost } from "../../src/sim/host.ts";
import { runXentool, spawnXentool } from "./executable.ts";
import { readUntil } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const SIGTERM_STATUS = 143;
/** Does not end when it is asked to, but says so. */
const STUBBORN = `trap "echo asked" TERM; echo ready; while :; do sleep 0.05; done`;

let host: SimHost;
let dir: string;

beforeEach(async () => {
  host = await SimHost.start();
  dir = temporaryDirectory();
  writeFileSync(join(dir, "disk.img"), new Uint8Array(65_536));
});

afterEach(async () => {
  await host.stop();
  removeDirectory(dir);
});

function serve(command: string): ReturnType<typeof spawnXentool> {
  const args = [
    "blkback",
    "serve",
    join(dir, "disk.img"),
    "--domid",
    "1",
    "--vdev",
    "xvdb",
    "--run",
    command,
  ];
  return spawnXentool(args, { env: { XENTOOL_SIM: host.dir } });
}

/** Exit status of `server`, and the milliseconds until it came. */
async function endOf(server: ReturnType<typeof spawnXentool>): Promise<{ status: number; ms: number }> {
  const started = performance.now();
  const status = await server.exited;
  return { status, ms: performance.now() - started };
}

test("its end is the server's, and its status, too", async () => {
  expect((await endOf(serve("exit 7"))).status).toBe(7);
});

test("SIGTERM: it is asked to end, and has the time to", async () => {
  const server = serve(`trap "sleep 0.3; echo done; exit 3" TERM; echo ready; while :; do sleep 0.05; done`);
  await readUntil(server.stdout, "ready");
  server.kill("SIGTERM");
  await readUntil(server.stdout, "done");
  expect(await server.exited).toBe(SIGTERM_STATUS);
  const list = await runXentool(["blkback", "list", "--json"], { env: { XENTOOL_SIM: host.dir } });
  expect(JSON.parse(list.stdout)).toEqual([]);
});

test("SIGTERM: one that does not end is made to after 2 s", async () => {
  const server = serve(STUBBORN);
  await readUntil(server.stdout, "ready");
  server.kill("SIGTERM");
  const { status, ms } = await endOf(server);
  expect(status).toBe(SIGTERM_STATUS);
  expect(ms).toBeWithin(1800, 20_000);
});

test("a second SIGTERM: at once", async () => {
  const server = serve(STUBBORN);
  await readUntil(server.stdout, "ready");
  server.kill("SIGTERM");
  // Two that come before the server gets to run would be one to it.
  await readUntil(server.stdout, "asked");
  server.kill("SIGTERM");
  const { status, ms } = await endOf(server);
  expect(status).toBe(SIGTERM_STATUS);
  expect(ms).toBeLessThan(1800);
});

test("xenstored goes: it is asked to end, and the server tells what happened", async () => {
  const server = serve(`trap "echo asked; exit 0" TERM; echo ready; while :; do sleep 0.05; done`);
  await readUntil(server.stdout, "ready");
  await host.stop();
  await readUntil(server.stdout, "asked");
  expect(await server.exited).toBe(5);
  expect(await server.stderr.text()).toContain("xenstored");
});
