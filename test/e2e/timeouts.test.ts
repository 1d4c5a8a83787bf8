// What each command's help says that --timeout bounds. Here it is xenstored, or a simulated host, that has stopped to
// answer; the other waits (for a guest, a server, a peer) have their tests where these are tested.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { xentool } from "../../cmd/commands.ts";
import { WAITS_FOR_NOBODY } from "../../cmd/lib/command.ts";
import { pagesOf } from "../../scripts/man-page.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { runXentool } from "./executable.ts";

const TIMEOUT = 6;

let dir: string;
let host: { readonly dir: string; readonly pid: number };

beforeAll(async () => {
  dir = temporaryDirectory();
  writeFileSync(join(dir, "disk.img"), new Uint8Array(2 ** 20));
  const started = await runXentool(["sim", "start", "--dir", join(dir, "host"), "--json"]);
  host = JSON.parse(started.stdout) as typeof host;
  process.kill(host.pid, "SIGSTOP");
});

afterAll(async () => {
  // It still has the order of the `sim stop` that did not wait for it.
  process.kill(host.pid, "SIGCONT");
  while (existsSync(host.dir)) await new Promise(setImmediate);
  expect(readdirSync(dir)).toEqual(["disk.img"]);
  removeDirectory(dir);
});

const DISK = "--domid 1 --vdev xvdb";
/** Commands that wait for xenstored or the host, as they are typed. */
const WAITING: Readonly<Record<string, string>> = {
  "blkback serve": `disk.img ${DISK}`,
  "blkback watch": "",
  "blkback create": DISK,
  "blkback destroy": DISK,
  "blkback close": DISK,
  "blkback force-close": DISK,
  "blkback resize": DISK,
  "blkback limit": DISK,
  "blkback list": "",
  "blkback stats": "--domid web",
  "blkfront nbd": "--vdev xvdb --socket nbd.sock",
  "blkfront bench": "--vdev xvdb",
  "vchan listen": "1 files",
  "vchan connect": "1 files",
  "vchan bench listen": "1 files",
  "vchan bench connect": "1 files",
  "xsring inspect": "--domid web",
  "xsring close": "--domid 1",
  "xsring trace": "--domid web",
  "selftest block": "",
  "selftest vchan": "",
  "selftest xenstore": "",
  "sim exec": "web -- true",
  "sim status": "",
  "sim stop": "",
};
/** They report what does not answer, and go on. */
const REPORTS = ["doctor", "sim list"];
/** It waits for the host that it starts. */
const STARTS = ["sim start"];

const leaves = pagesOf(xentool)
  .filter(({ command }) => command.run !== undefined)
  .map(({ words, command: { timeout } }) => ({ name: words.slice(1).join(" "), timeout }));

test("every command's help says what --timeout bounds", () => {
  const [without, others] = [true, false].map((is) =>
    leaves.filter(({ timeout }) => timeout.startsWith("Without effect") === is).map(({ name }) => name),
  );
  expect(without).toEqual(["blkback install", "blkback uninstall", "sim run", "top", "completion"]);
  expect(others?.toSorted()).toEqual([...Object.keys(WAITING), ...REPORTS, ...STARTS].toSorted());
  expect(WAITS_FOR_NOBODY).toStartWith("Without effect");
});

test("help shows it", async () => {
  const { stdout } = await runXentool(["blkback", "close", "--help"], { env: { COLUMNS: "200" } });
  expect(stdout).toMatch(/ --timeout +Seconds that the guest has to let go \(default 10\), and xenstore/);
});

test("and that holds", async () => {
  const outcomes = Object.entries(WAITING).map(async ([name, rest]) => {
    const words = `${name} --timeout 0.3 ${rest}`.trim().split(" ");
    const { status, stdout } = await runXentool(words, { cwd: dir, env: { XENTOOL_SIM: host.dir } });
    return [name, status, stdout];
  });
  expect(await Promise.all(outcomes)).toEqual(Object.keys(WAITING).map((name) => [name, TIMEOUT, ""]));
});

test("what needs no xenstore does not wait for it", async () => {
  for (const line of ["blkback stats", "xsring inspect --domid 1"])
    expect(await runXentool(line.split(" "), { env: { XENTOOL_SIM: host.dir } })).toMatchObject({
      status: 0,
    });
});

test("sim start ends what does not become ready", async () => {
  const late = join(dir, "late");
  const { status, stderr } = await runXentool(["sim", "start", "--dir", late, "--timeout", "0.001"]);
  expect([status, stderr]).toEqual([TIMEOUT, "xentool: the simulated host was not ready within 1 ms\n"]);
  expect(readdirSync(dir)).not.toContain("late");
});
