// What every command has in common: exit statuses, one-line errors, JSON, pipes and signals.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Xenstore } from "../../src/xenstore/client.ts";
import { SimHost } from "../../src/sim/host.ts";
import { runShell, runXentool, spawnXentool } from "./executable.ts";
import { readUntil } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

describe("mistakes", () => {
  test.each([
    ["no command", [], "which command? try: xentool --help"],
    ["an unknown command", ["frobnicate"], "unknown command: frobnicate; try: xentool --help"],
    ["a misspelt command", ["doctr"], "unknown command: doctr, did you mean doctor? try: xentool --help"],
    ["an unknown option", ["doctor", "--frob"], "unknown option: frob; try: xentool doctor --help"],
    ["an argument too many", ["doctor", "now"], "unexpected argument: now; try: xentool doctor --help"],
    ["no action", ["sim"], "which one: run, start, exec, list, status, stop? try: xentool sim --help"],
    [
      "no action before a command",
      ["sim", "--", "sh"],
      "which one: run, start, exec, list, status, stop? try: xentool sim --help",
    ],
    [
      "no action of an action",
      ["vchan", "bench"],
      "which one: listen, connect? try: xentool vchan bench --help",
    ],
    [
      "an unknown action with arguments",
      ["vchan", "serve", "1", "files"],
      "unknown command: serve; try: xentool vchan --help",
    ],
    [
      "options that an action requires",
      ["-v", "blkback", "serve", "d.img"],
      "missing: --domid, --vdev; try: xentool blkback serve --help",
    ],
    [
      "an option and an argument that an action requires",
      ["blkback", "serve", "--vdev", "foo"],
      "missing: IMAGE, --domid; try: xentool blkback serve --help",
    ],
    ["arguments", ["vchan", "listen"], "missing: DOMID, NAME; try: xentool vchan listen --help"],
    [
      "one argument of two",
      ["vchan", "bench", "connect", "0"],
      "missing: NAME; try: xentool vchan bench connect --help",
    ],
    [
      "an argument too many for an action",
      ["blkback", "serve", "d.img", "e.img", "--domid", "1", "--vdev", "xvdb"],
      "unexpected argument: e.img; try: xentool blkback serve --help",
    ],
    [
      "an option's value without its name",
      ["blkback", "serve", "d.img", "r", "--domid", "1", "--vdev", "xvdb"],
      "unexpected argument: r, did you mean --mode r? try: xentool blkback serve --help",
    ],
    [
      "a command without -- in front",
      ["sim", "run", "ls"],
      "unexpected argument: ls, did you mean xentool sim run -- ls? try: xentool sim run --help",
    ],
    [
      "a choice that there is not",
      ["blkback", "serve", "d.img", "--domid", "1", "--vdev", "xvdb", "--mode", "rw"],
      '--mode must be one of "r", "w", "w!", not "rw"; try: xentool blkback serve --help',
    ],
    [
      "an option without its value",
      ["blkback", "close", "--vdev", "xvdb", "--domid"],
      "--domid wants a value; try: xentool blkback close --help",
    ],
    ["a choice without its value", ["top", "--sort"], "--sort wants a value; try: xentool top --help"],
    [
      "options that exclude each other",
      ["xsring", "trace", "--read", "a", "--write", "b"],
      "--read and --write exclude each other; try: xentool xsring trace --help",
    ],
    [
      "a slip of the hand in an option",
      ["doctor", "--platfrom", "sim"],
      "unknown option: platfrom, did you mean --platform? try: xentool doctor --help",
    ],
    [
      "a slip of the hand in a command",
      ["blkbakc"],
      "unknown command: blkbakc, did you mean blkback? try: xentool --help",
    ],
    ["a command that is like no other", ["zzz"], "unknown command: zzz; try: xentool --help"],
    [
      "help for a command that there is not",
      ["nosuch", "--help"],
      "unknown command: nosuch; try: xentool --help",
    ],
    [
      "help for an action that there is not",
      ["help", "blkback", "serv"],
      "unknown command: serv, did you mean serve? try: xentool blkback --help",
    ],
    [
      "an image that only whoever types it would find",
      ["blkback", "create", "--domid", "1", "--vdev", "xvdb", "--params", "d.img", "--platform", "xen"],
      '--params must be an absolute path or a URI, not "d.img"',
    ],
    [
      "a disk's name, before a platform is looked for",
      ["blkback", "close", "--domid", "1", "--vdev", "nonsense", "--platform", "xen"],
      '--vdev: "nonsense" is not a disk name such as xvdb',
    ],
  ])("%s: status 2 and one line", async (_what, args, message) => {
    expect(await runXentool(args)).toEqual({ status: 2, stdout: "", stderr: `xentool: ${message}\n` });
  });

  test("are JSON with --json", async () => {
    const { status, stdout, stderr } = await runXentool(["frobnicate", "--json"]);
    expect({ status, stdout, error: JSON.parse(stderr) as unknown }).toEqual({
      status: 2,
      stdout: "",
      error: {
        error: { kind: "usage", message: "unknown command: frobnicate; try: xentool --help", context: {} },
      },
    });
  });

  test("a missing host: status 3 and what to do", async () => {
    const { status, stderr } = await runXentool(["blkback", "list", "--platform", "sim"]);
    expect(status).toBe(3);
    expect(stderr).toBe(
      "xentool: XENTOOL_SIM names no simulated host; " +
        "start a simulated one: `xentool sim run -- COMMAND`, or `xentool sim start`\n",
    );
  });
});

describe("help", () => {
  test.each(["serve", "watch"])(
    "blkback %s --filter help lists the filters, whatever is missing",
    async (action) => {
      const { status, stdout, stderr } = await runXentool(["blkback", action, "--filter", "help"]);
      expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
      expect(stdout).toContain("error[:");
    },
  );

  test("the image of blkback serve is required", async () => {
    const { stdout } = await runXentool(["blkback", "serve", "--help"]);
    expect(stdout).toStartWith("xentool blkback serve <image>");
    expect(stdout).toMatch(/^ +image .*\[required\]/m);
  });

  test.each([
    [[]],
    [["blkback"]],
    [["blkback", "serve"]],
    [["sim"]],
    [["sim", "run"]],
    [["vchan"]],
    [["doctor"]],
  ])("%j --help is on stdout, status 0", async (command) => {
    const { status, stdout, stderr } = await runXentool([...command, "--help"]);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(stdout).toStartWith(["xentool", ...command].join(" "));
    expect(stdout).toContain("--timeout");
  });

  test("a shell completes commands", async () => {
    const { stdout } = await runShell(`eval "$("$xentool" completion bash)"; complete -p xentool`);
    expect(stdout).toContain("xentool");
    const words = await runXentool(["complete", "--", "doc"]);
    expect(words.stdout).toBe("doctor\tSay what this host has and lacks, and what to do about it\n");
  });
});

describe("doctor", () => {
  test("says what is there, and its status whether the platform is usable", async () => {
    const { status, stdout } = await runXentool(["doctor", "--platform", "sim", "--json"]);
    const report = JSON.parse(stdout) as { usable: { sim: boolean }; checks: { name: string }[] };
    expect(status).toBe(report.usable.sim ? 0 : 3);
    expect(report.checks.map(({ name }) => name)).toContain("io_uring");
  });

  test("says what to do about everything that is missing", async () => {
    const { stdout } = await runXentool(["doctor", "--json"]);
    const { checks } = JSON.parse(stdout) as { checks: { ok: boolean; advice?: string }[] };
    for (const { ok, advice } of checks) expect(advice === undefined).toBe(ok);
  });

  test("a low limit of locked memory is noted, not missing", async () => {
    const { stdout } = await runShell('ulimit -l 64; "$xentool" doctor --platform sim');
    expect(stdout).toMatch(/^ {2}note {5}memlock +64 KiB$/m);
  });
});

describe("on a simulated host", () => {
  const DEVICES = 700;
  let host: SimHost;
  let dir: string;
  let env: Record<string, string>;

  beforeAll(async () => {
    dir = temporaryDirectory();
    writeFileSync(join(dir, "disk.img"), new Uint8Array(2 ** 20));
    host = await SimHost.start();
    env = { XENTOOL_SIM: host.dir };
  });

  afterAll(async () => {
    await host.stop();
    removeDirectory(dir);
  });

  /** Devices enough that their list fills a pipe several times over. */
  async function withManyDevices(body: () => Promise<void>): Promise<void> {
    const xenstore = await Xenstore.connect(host.platform(0));
    const backends = "/local/domain/0/backend/qdisk/2";
    const frontends = "/local/domain/2/device/vbd";
    try {
      for (let devid = 0; devid < DEVICES; devid++) {
        await xenstore.write(`${backends}/${51_712 + devid}/params`, "x".repeat(100));
        await xenstore.write(`${backends}/${51_712 + devid}/frontend`, `${frontends}/${51_712 + devid}`);
      }
      await body();
    } finally {
      await xenstore.rm(backends);
      xenstore.close();
    }
  }

  test("long output reaches a slow reader whole, and a reader that leaves early leaves no trace", async () => {
    await withManyDevices(async () => {
      const slow = await runShell(`"$xentool" blkback list --json | { sleep 0.3; cat; }`, env);
      expect(slow.stdout.length).toBeGreaterThan(2 * 65_536);
      expect(JSON.parse(slow.stdout) as unknown[]).toHaveLength(DEVICES);
      const early = await runShell(`"$xentool" blkback list --json | head -1; exit "\${PIPESTATUS[0]}"`, env);
      expect(early.stderr).toBe("");
      expect([0, 141]).toContain(early.status);
    });
  });

  test.each([
    ["SIGTERM", 143],
    ["SIGINT", 130],
  ] as const)("%s ends a server cleanly with status %d", async (signal, expected) => {
    const server = spawnXentool(
      ["blkback", "serve", join(dir, "disk.img"), "--domid", "1", "--vdev", "xvdb"],
      {
        env,
      },
    );
    await readUntil(server.stderr, "offering");
    server.kill(signal);
    expect(await server.exited).toBe(expected);
    const list = await runXentool(["blkback", "list", "--json"], { env });
    expect(JSON.parse(list.stdout)).toEqual([]);
  });

  test("a simulated host in the foreground ends at a signal, and its directory with it", async () => {
    const hostDir = join(dir, "host");
    const other = spawnXentool(["sim", "start", "--foreground", "--dir", hostDir]);
    await readUntil(other.stdout, "\n");
    other.kill("SIGTERM");
    expect(await other.exited).toBe(143);
    expect(existsSync(hostDir)).toBe(false);
  });

  test("a signal to the starter of a simulated host ends the host, too", async () => {
    const hostDir = join(dir, "early");
    const starter = spawnXentool(["sim", "start", "--dir", hostDir]);
    while (!existsSync(join(hostDir, "host.log"))) await new Promise(setImmediate);
    starter.kill("SIGTERM");
    expect(await starter.exited).toBe(143);
    expect(existsSync(hostDir)).toBe(false);
  });
});
