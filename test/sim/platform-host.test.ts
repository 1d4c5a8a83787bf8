// `xentool sim` as a process: for one command, in the background, asked, stopped, and found dead.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { askHost } from "../../src/sim/control.ts";
import { stopHost } from "../../src/sim/daemon.ts";
import { SimHost, type SimStatus } from "../../src/sim/host.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { finished, start as startProgram, type Child, type Finished } from "../support/process.ts";

const MAIN = join(import.meta.dir, "..", "..", "cmd", "xentool.ts");
/** With the variables of the test's own surroundings left out. */
const ENV = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("XENTOOL_")));

let scratch: string;
beforeEach(() => {
  scratch = temporaryDirectory();
});
afterEach(() => removeDirectory(scratch));

function start(args: readonly string[], env: Record<string, string> = {}): Child {
  return startProgram([process.execPath, MAIN, "sim", ...args], { env: { ...ENV, ...env } });
}

function sim(...args: readonly string[]): Promise<Finished> {
  return finished(start(args));
}

test("run gives the command a host, its exit status back, and leaves nothing", async () => {
  const script = 'ls "$XENTOOL_SIM"; echo "$XENTOOL_SIM"; exit 7';
  const { status, stdout: out } = await sim("run", "--domains", "2", "--", "sh", "-c", script);
  expect(status).toBe(7);
  const lines = out.trim().split("\n");
  expect(lines.slice(0, -1)).toEqual(["dom0", "dom1", "host", "host.json", "host.sock", "lib"]);
  expect(existsSync(lines.at(-1) as string)).toBe(false);
});

test("run passes SIGTERM on, and ends as the command did", async () => {
  const child = start(["run", "--", "sh", "-c", 'echo "$XENTOOL_SIM"; exec sleep 60']);
  const reader = child.stdout.getReader();
  const { value } = await reader.read();
  const dir = new TextDecoder().decode(value).trim();
  expect(existsSync(dir)).toBe(true);
  child.kill("SIGTERM");
  expect(await child.exited).toBe(143);
  expect(existsSync(dir)).toBe(false);
  await reader.cancel();
});

test("run says what is wrong: no command, no such command, bad limits", async () => {
  const [none, missing, bad] = await Promise.all([
    sim("run"),
    sim("run", "--", "/nonexistent/command"),
    sim("run", "--limit", "share-pages=many", "--", "true"),
  ]);
  expect([none.status, missing.status, bad.status]).toEqual([2, 3, 2]);
  expect(missing.stderr).toContain("ENOENT");
  expect(bad.stderr).toContain("grant-entries, share-pages");
});

test("start, status, stop", async () => {
  const dir = join(scratch, "host");
  const limits = ["--limit", "share-pages=5", "--personality", "xenstored-4.22"];
  const started = await sim("start", "--dir", dir, "--domains", "2", ...limits);
  const out0 = [
    `export XENTOOL_SIM=${dir}\n`,
    `export XENSTORED_PATH=${dir}/dom0/xenstored\n`,
    `export LD_LIBRARY_PATH=${dir}/lib\${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\n`,
  ].join("");
  expect(started).toEqual({ status: 0, stdout: out0, stderr: "" });
  const again = await sim("start", "--dir", dir);
  expect(again).toEqual({
    status: 3,
    stdout: "",
    stderr: `xentool: ${dir} is not empty: it holds a simulated host; choose another directory\n`,
  });

  const { stdout: out } = await sim("status", "--dir", dir, "--json");
  const status = JSON.parse(out) as SimStatus;
  expect(status.domains).toEqual([
    { domid: 0, name: "Domain-0" },
    { domid: 1, name: "domain-1" },
  ]);
  expect(status.limits.sharePages).toBe(5);
  expect(status.personality).toBe("xenstored-4.22");
  expect((await sim("status", "--dir", dir)).stdout).toContain("domain-1");

  expect(await askHost(dir, { op: "createDomain", name: "third" })).toEqual({ domid: 2 });
  expect(existsSync(join(dir, "dom2", "xenstored"))).toBe(true);
  expect(await askHost(dir, { op: "destroyDomain", domid: 2 })).toBeNull();
  expect(existsSync(join(dir, "dom2"))).toBe(false);
  expect(askHost(dir, { op: "destroyDomain", domid: 0 })).rejects.toThrow("cannot be destroyed");

  expect((await sim("stop", "--dir", dir, "--json")).status).toBe(0);
  expect(existsSync(dir)).toBe(false);
  expect((await sim("stop", "--dir", dir)).status).toBe(3);
});

test("a host that was killed is cleaned up by stop", async () => {
  const dir = join(scratch, "host");
  await sim("start", "--dir", dir);
  const { pid } = (await askHost(dir, { op: "status" })) as SimStatus;
  process.kill(pid, "SIGKILL");
  const { status, stderr: err } = await sim("stop", "--dir", dir);
  expect(status).toBe(0);
  expect(err).toContain("had died");
  expect(existsSync(dir)).toBe(false);
});

test("a directory with something in it stays untouched, whatever its name", async () => {
  mkdirSync(join(scratch, "dom5"));
  for (const name of ["dom5/data.txt", "host.json", "other"]) writeFileSync(join(scratch, name), "data");
  for (const flags of [[], ["--foreground"]]) {
    const { status, stderr: err } = await sim("start", "--dir", scratch, ...flags);
    expect(err).toContain("not empty");
    expect(status).toBe(3);
  }
  expect(readdirSync(scratch, { recursive: true }).toSorted()).toEqual([
    "dom5",
    "dom5/data.txt",
    "host.json",
    "other",
  ]);
});

test("of several that start in one directory one gets it, and the others leave it alone", async () => {
  for (const flags of [[], ["--foreground"]]) {
    const dir = join(scratch, `host${flags.length}`);
    const children = Array.from({ length: 4 }, () => start(["start", "--dir", dir, ...flags]));
    // In the foreground the winner stays: it is stopped once the others have given up.
    const losers = children.map(({ exited }) => exited);
    const alive = await winnerOf(children, flags.length === 0);
    expect(((await askHost(dir, { op: "status" })) as SimStatus).domains).toHaveLength(3);
    expect((await sim("stop", "--dir", dir)).status).toBe(0);
    expect((await Promise.all(losers)).toSorted()).toEqual([0, 3, 3, 3]);
    expect(alive).toBe(1);
    expect(existsSync(dir)).toBe(false);
  }
});

/** How many of `children` won, once the others have ended. A winner in the background has ended, too. */
async function winnerOf(children: readonly ReturnType<typeof start>[], ends: boolean): Promise<number> {
  const wanted = ends ? children.length : children.length - 1;
  while (children.filter(({ exitCode }) => exitCode !== null).length < wanted) await Bun.sleep(10);
  return children.filter(({ exitCode }) => exitCode === null || exitCode === 0).length;
}

test("stop removes only what was a host: its description, its memory, and its process gone", async () => {
  const { pid } = Bun.spawnSync(["true"]);
  const cases: readonly (readonly [description: string, hasMemory: boolean])[] = [
    ["{}", true],
    ["no JSON", true],
    [JSON.stringify({ version: 2, pid }), true],
    [JSON.stringify({ version: 1, pid: "1" }), true],
    [JSON.stringify({ version: 1, pid: -1 }), true],
    [JSON.stringify({ version: 1, pid: process.pid }), true],
    [JSON.stringify({ version: 1, pid }), false],
  ];
  for (const [description, hasMemory] of cases) {
    const dir = mkdtempSync(join(scratch, "not-a-host-"));
    mkdirSync(join(dir, "dom5"));
    writeFileSync(join(dir, "host.json"), description);
    if (hasMemory) writeFileSync(join(dir, "host"), "");
    const before = readdirSync(dir);
    expect(stopHost(dir)).rejects.toMatchObject({ kind: "environment" });
    expect(readdirSync(dir)).toEqual(before);
  }
});

test.each(["/proc/nothing", "/dev/null/x"])("no host can be in %s: status 3, one line", async (dir) => {
  for (const flags of [[], ["--foreground"]]) {
    const { status, stderr: err } = await sim("start", "--dir", dir, ...flags);
    expect(err).toMatch(/^xentool: there can be no simulated host in [^\n]+\n$/);
    expect(status).toBe(3);
  }
});

test("statistics and journals of served disks go with the host", async () => {
  const host = await SimHost.start({ domains: 2 });
  mkdirSync(join(host.dir, "blkback"));
  writeFileSync(join(host.dir, "blkback", "1-51712.stats"), "");
  await host.stop();
  expect(existsSync(host.dir)).toBe(false);
});

test("start reports why the host did not come up", async () => {
  const dir = join(scratch, "host");
  const { status, stderr: err } = await sim("start", "--dir", dir, "--limit", "grant-entries=1");
  expect(status).toBe(3);
  expect(err).toContain("EINVAL");
  expect(existsSync(dir)).toBe(false);
});
