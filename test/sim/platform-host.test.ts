// `xentool sim` as a process: for one command, in the background, asked, stopped, and found dead.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { SimStatus } from "../../src/sim/host.ts";
import { askHost } from "../../src/sim/control.ts";

const MAIN = join(import.meta.dir, "..", "..", "cmd", "xentool.ts");
/** With the variables of the test's own surroundings left out. */
const ENV = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("XENTOOL_")));

let scratch: string;
beforeEach(() => {
  scratch = mkdtempSync(join(tmpdir(), "xentool-test-"));
});
afterEach(() => rmSync(scratch, { recursive: true, force: true }));

interface Outcome {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

function start(args: readonly string[], env: Record<string, string> = {}) {
  return Bun.spawn([process.execPath, MAIN, "sim", ...args], {
    env: { ...ENV, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
}

async function outcomeOf(child: ReturnType<typeof start>): Promise<Outcome> {
  const [out, err, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { status, out, err };
}

function sim(...args: readonly string[]): Promise<Outcome> {
  return outcomeOf(start(args));
}

test("run gives the command a host, its exit status back, and leaves nothing", async () => {
  const script = 'ls "$XENTOOL_SIM"; echo "$XENTOOL_SIM"; exit 7';
  const { status, out } = await sim("run", "--domains", "2", "--", "sh", "-c", script);
  expect(status).toBe(7);
  const lines = out.trim().split("\n");
  expect(lines.slice(0, -1)).toEqual(["dom0", "dom1", "host", "host.json", "host.sock"]);
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
  expect(missing.err).toContain("ENOENT");
  expect(bad.err).toContain("grant-entries, share-pages");
});

test("start, status, stop", async () => {
  const dir = join(scratch, "host");
  const limits = ["--limit", "share-pages=5", "--personality", "xenstored-4.22"];
  const started = await sim("start", "--dir", dir, "--domains", "2", ...limits);
  expect(started).toEqual({ status: 0, out: `export XENTOOL_SIM=${dir}\n`, err: "" });
  const again = await sim("start", "--dir", dir);
  expect(again.status).toBe(2);

  const { out } = await sim("status", "--dir", dir, "--json");
  const status = JSON.parse(out) as SimStatus;
  expect(status.domains).toEqual([
    { domid: 0, name: "Domain-0" },
    { domid: 1, name: "domain-1" },
  ]);
  expect(status.limits.sharePages).toBe(5);
  expect(status.personality).toBe("xenstored-4.22");
  expect((await sim("status", "--dir", dir)).out).toContain("domain-1");

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
  const { status, err } = await sim("stop", "--dir", dir);
  expect(status).toBe(0);
  expect(err).toContain("had died");
  expect(existsSync(dir)).toBe(false);
});

test("a directory with something in it stays untouched", async () => {
  writeFileSync(join(scratch, "precious"), "data");
  for (const flags of [[], ["--foreground"]])
    expect((await sim("start", "--dir", scratch, ...flags)).status).toBeGreaterThan(0);
  expect(readdirSync(scratch)).toEqual(["precious"]);
});

test("start reports why the host did not come up", async () => {
  const dir = join(scratch, "host");
  const { status, err } = await sim("start", "--dir", dir, "--limit", "grant-entries=1");
  expect(status).toBe(3);
  expect(err).toContain("EINVAL");
  expect(existsSync(dir)).toBe(false);
});
