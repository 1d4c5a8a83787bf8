// `xentool top` in a pipe, as JSON, on a terminal of its own, and where xenstored does not answer.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { join } from "node:path";
import { encodePacket, encodeText, XS_READ } from "../../src/protocol/xs-wire.ts";
import type { SimHost } from "../../src/sim/host.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { GuestRing } from "../sim/xsring-harness.ts";
import { executable, runXentool, spawnXentool } from "./executable.ts";
import { readUntil } from "../support/process.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { DiskHost } from "./disk-host.ts";

const DEVICE = diskAddress(1);

let ground: DiskHost;
let dir: string;
let host: SimHost;
let env: DiskHost["env"];

beforeEach(async () => {
  ground = await DiskHost.start(undefined, { domains: 3 });
  ({ dir, host, env } = ground);
});
afterEach(() => ground.close());

test("one line or one object for each interval, of the disks and the rings", async () => {
  const served = ["blkback", "serve", join(dir, "a.img"), "--domid", "1", "--vdev", "xvdb"];
  const server = spawnXentool(served, { env });
  await readUntil(server.stderr, "offering");
  const guest = await HandmadeGuest.start(host, DEVICE);
  await guest.connect();
  const lines = await runXentool(["top", "--count", "2", "--interval", "0.1"], { env });
  expect([lines.status, lines.stderr]).toEqual([0, ""]);
  expect(lines.stdout).toMatch(
    /^(\d\d:\d\d:\d\d  1 disk, \d+ IOPS, [^\n]*; 2 rings, \d+ req\/s[^\n]*\n){2}$/,
  );
  const json = await runXentool(["top", "--count", "1", "--interval", "0.1", "--json"], { env });
  expect(JSON.parse(json.stdout)).toMatchObject({
    disks: [{ domid: 1, vdev: "xvdb", state: "Connected", source: join(dir, "a.img"), queue: 0 }],
    rings: [
      { domid: 1, name: "domain-1", verdict: "healthy" },
      { domid: 2, name: "domain-2", verdict: "healthy" },
    ],
    notes: [],
  });
  server.kill("SIGTERM");
  await guest.untilBackend(5);
  await guest.setState(6);
  await server.exited;
  guest.close();
});

test("a guest that does not read its replies is seen to keep xenstored waiting", async () => {
  const guest = new GuestRing(host, 2);
  await guest.send(encodePacket(XS_READ, 1, 0, encodeText("name\0")));
  await guest.event();
  const { stdout } = await runXentool(["top", "--count", "1", "--interval", "0.5", "--json"], { env });
  const { rings } = JSON.parse(stdout) as { rings: { domid: number; verdict: string; waitsMs: number }[] };
  const second = rings.find(({ domid }) => domid === 2);
  expect(second?.verdict).toBe("server-waits");
  expect(second?.waitsMs).toBeGreaterThan(0);
  await guest.receive();
  await guest.close();
});

test("goes on, and ends, while xenstored does not answer", async () => {
  const started = await runXentool(["sim", "start", "--domains", "2", "--json"]);
  const { dir: other, pid } = JSON.parse(started.stdout) as { dir: string; pid: number };
  const stopped = { env: { XENTOOL_SIM: other } };
  process.kill(pid, "SIGSTOP");
  try {
    const top = await runXentool(["top", "--count", "1", "--interval", "0.1", "--json"], stopped);
    expect(top.status).toBe(0);
    expect(JSON.parse(top.stdout)).toMatchObject({
      rings: [],
      notes: ["xenstored has not answered yet: domains and names may be old"],
    });
  } finally {
    process.kill(pid, "SIGCONT");
  }
  expect((await runXentool(["top", "--count", "1", "--interval", "0.1"], stopped)).stdout).toContain(
    "1 ring,",
  );
  await runXentool(["sim", "stop", "--dir", other]);
});

test("on a terminal: one screen, keys, and everything put back", async () => {
  const line = `stty cols 80 rows 24; "${executable}" top --interval 0.1`;
  const terminal = Bun.spawn(["script", "-qec", line, "/dev/null"], {
    env: { ...process.env, ...env, TERM: "xterm" },
    stdin: "pipe",
    stdout: "pipe",
    stderr: "inherit",
  });
  const press = (key: string): void => {
    void terminal.stdin.write(key);
    void terminal.stdin.flush();
  };
  let text = await readUntil(terminal.stdout, "sorted by load");
  expect(text.startsWith("\x1b[?1049h\x1b[?25l")).toBe(true);
  press("n");
  text = await readUntil(terminal.stdout, "sorted by name");
  text += await readUntil(terminal.stdout, "q quit");
  expect(text).toContain("no disk is served here");
  press("q");
  await readUntil(terminal.stdout, "\x1b[?25h\x1b[?1049l");
  expect(await terminal.exited).toBe(0);
});

test.each([
  [["--interval", "0"], "--interval must be a number from 0.1 to 86400, not 0"],
  [["--count", "0"], "--count must be a number from 1 on, not 0"],
])("%p is refused", async (args, words) => {
  expect(await runXentool(["top", ...args], { env })).toEqual({
    status: 2,
    stdout: "",
    stderr: `xentool: ${words}\n`,
  });
});
