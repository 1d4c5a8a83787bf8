// What is wrong with an argument is found before anything is done with it, for every command in the same words.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { SimHost } from "../../src/sim/host.ts";
import { runXentool } from "./executable.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const LISTEN = ["vchan", "listen", "1", "t"];
const USAGE = 2;
const ENVIRONMENT = 3;

describe("numbers", () => {
  test.each([
    ["nothing", ["doctor", "--timeout", ""], '--timeout wants a number, not ""'],
    ["nothing after =", ["doctor", "--timeout="], '--timeout wants a number, not ""'],
    ["a blank", ["doctor", "--timeout", " "], '--timeout wants a number, not " "'],
    ["a word", ["doctor", "--timeout", "soon"], '--timeout wants a number, not "soon"'],
    [
      "an escape sequence",
      ["doctor", "--timeout", "\x1b[2J"],
      String.raw`--timeout wants a number, not "\u001b[2J"`,
    ],
    ["a number and more", ["doctor", "--timeout", "5s"], '--timeout wants a number, not "5s"'],
    ["hexadecimal digits", ["xsring", "trace", "-s", "0x10"], '--string-limit wants a number, not "0x10"'],
    ["an exponent", ["xsring", "trace", "-s", "1e3"], '--string-limit wants a number, not "1e3"'],
    ["no end", ["xsring", "trace", "--count", "Infinity"], '--count wants a number, not "Infinity"'],
    ["a negation", ["doctor", "--no-timeout"], "--timeout wants a number, not false"],
    ["an alias", ["xsring", "trace", "-s", ""], '--string-limit wants a number, not ""'],
  ])("%s is none", async (_what, args, message) => {
    expect(await runXentool(args)).toEqual({ status: USAGE, stdout: "", stderr: `xentool: ${message}\n` });
  });

  test.each(["1", "01", "0.5", ".5"])("%s is one", async (text) => {
    const { stderr } = await runXentool(["doctor", "--timeout", text]);
    expect(stderr).toBe("");
  });

  test("a negative one is a number, but not in range", async () => {
    const { stderr } = await runXentool(["doctor", "--timeout", "-1"]);
    expect(stderr).toBe("xentool: --timeout must be a number from 0.001 to 1000000, not -1\n");
  });
});

describe("sizes have one grammar:", () => {
  const range = "is not a size from 0 to 1M, such as 64k or 1M";
  test.each([
    ["not decimal", [...LISTEN, "--read-size", "0x10"], `--read-size: "0x10" ${range}`],
    ["too much", [...LISTEN, "--write-size", "2M"], `--write-size: "2M" ${range}`],
    ["a unit that could be either", [...LISTEN, "--read-size", "64kB"], `--read-size: "64kB" ${range}`],
    [
      "nothing to send",
      ["vchan", "bench", "connect", "0", "t", "--bytes", "0"],
      '--bytes: "0" is not a size from 1 to 1T, such as 64k or 1M',
    ],
    [
      "no size of a request",
      ["blkfront", "bench", "--vdev", "xvdb", "--bs", "4kB", "--platform", "sim"],
      '--bs: "4kB" is not a size from 1 to 1G, such as 64k or 1M',
    ],
  ])("%s", async (_what, args, message) => {
    expect(await runXentool(args)).toEqual({ status: USAGE, stdout: "", stderr: `xentool: ${message}\n` });
  });
});

describe("an option that was given twice is a mistake:", () => {
  test.each([
    ["a path", [...LISTEN, "--unix", "a", "--unix", "b"], "--unix"],
    ["the same again", [...LISTEN, "--tcp", "a:1", "--tcp", "a:1"], "--tcp"],
    ["a number", ["doctor", "--timeout", "1", "--timeout", "2"], "--timeout"],
    ["a choice", ["doctor", "--platform", "sim", "--platform=sim"], "--platform"],
    ["by its alias", ["xsring", "trace", "-s", "1", "--string-limit", "2"], "--string-limit"],
  ])("%s", async (_what, args, name) => {
    const stderr = `xentool: ${name} was given twice\n`;
    expect(await runXentool(args)).toEqual({ status: USAGE, stdout: "", stderr });
  });

  test("but not what may be repeated", async () => {
    const limits = ["--limit", "share-pages=64", "--limit", "ports=9"];
    const { stderr } = await runXentool([
      "sim",
      "run",
      "-v",
      "-v",
      "--json",
      "--json",
      ...limits,
      "--",
      "true",
    ]);
    expect(stderr).not.toContain("twice");
  });
});

describe("empty texts are mistakes:", () => {
  test.each([
    ["a socket", [...LISTEN, "--unix", ""], "--unix must not be empty"],
    ["no socket", [...LISTEN, "--no-unix"], "--unix must not be empty"],
    ["an address", [...LISTEN, "--tcp="], "--tcp must not be empty"],
    ["a name", ["vchan", "connect", "0", ""], "NAME must not be empty"],
    ["a domain", ["vchan", "listen", "", "t"], "DOMID must not be empty"],
    ["a guest", ["blkback", "close", "--vdev", "xvdb", "--domid", ""], "--domid must not be empty"],
    ["an image", ["blkback", "serve", "", "--domid", "1", "--vdev", "xvdb"], "IMAGE must not be empty"],
    ["a file", ["xsring", "inspect", "--file", ""], "--file must not be empty"],
    ["one of several", ["sim", "run", "--limit", "", "--", "true"], "--limit must not be empty"],
    ["a command", [...LISTEN, "--", ""], "the command after -- must not be empty"],
    ["sim's command", ["sim", "run", "--", "", "x"], "the command after -- must not be empty"],
  ])("%s", async (_what, args, message) => {
    expect(await runXentool(args)).toEqual({ status: USAGE, stdout: "", stderr: `xentool: ${message}\n` });
  });

  test("a part of an option is no option", async () => {
    const { stderr } = await runXentool([...LISTEN, "--unix.path", "a"]);
    expect(stderr).toBe("xentool: unknown option: unix.path; try: xentool vchan listen --help\n");
  });
});

describe("which way a relay goes, and when it ends:", () => {
  test.each([
    ["both ways alone", ["--send", "--receive"], "--send and --receive exclude each other"],
    [
      "two ends",
      ["--send", "--linger", "1"],
      "--send and --linger exclude each other: --send waits for no answer",
    ],
    [
      "a socket that is not read",
      ["--receive", "--tcp", "host:1"],
      "--receive is for standard output alone, not for a socket or a command",
    ],
    [
      "a command that is not read",
      ["--receive", "--", "date"],
      "--receive is for standard output alone, not for a socket or a command",
    ],
    ["a word", ["--linger", "long"], '--linger wants "forever" or seconds, up to 1000000, not "long"'],
    ["too little", ["--linger", "-1"], '--linger wants "forever" or seconds, up to 1000000, not "-1"'],
    ["nothing", ["--linger", ""], "--linger must not be empty"],
  ])("%s", async (_what, args, message) => {
    const stderr = `xentool: ${message}\n`;
    expect(await runXentool([...LISTEN, ...args])).toEqual({ status: USAGE, stdout: "", stderr });
  });
});

describe("a relay's command", () => {
  let host: SimHost;
  let dir: string;

  beforeAll(async () => {
    host = await SimHost.start();
    dir = temporaryDirectory();
    writeFileSync(join(dir, "tool"), "#!/bin/sh\n");
    chmodSync(join(dir, "tool"), 0o755);
    writeFileSync(join(dir, "text"), "");
    mkdirSync(join(dir, "folder"));
  });

  afterAll(async () => {
    await host.stop();
    removeDirectory(dir);
  });

  /** Runs `vchan ACTION` in `dir`, where nobody is at the other end, with this command. */
  function relay(action: string, command: string) {
    const args = ["vchan", action, "1", "t", "--timeout", "0.2", "--", command];
    return runXentool(args, { cwd: dir, env: { XENTOOL_SIM: host.dir } });
  }

  test.each([
    ["listen", "no-such-command", "not found"],
    ["connect", "no-such-command", "not found"],
    ["listen", "tool", "not found"],
    ["listen", "./no-such-file", "not found"],
    ["listen", "/no/such/file", "not found"],
    ["listen", "./text", "not executable"],
    ["listen", "./folder", "not executable"],
  ])("vchan %s -- %s: %s, and that at once", async (action, command, why) => {
    const stderr = `xentool: cannot run ${command}: ${why}\n`;
    expect(await relay(action, command)).toEqual({ status: ENVIRONMENT, stdout: "", stderr });
  });

  test("is found in PATH, and by a relative or an absolute path", async () => {
    for (const command of ["sh", "./tool", "folder/../tool", join(dir, "tool")]) {
      const { status, stderr } = await relay("listen", command);
      expect({ command, status, stderr }).toEqual({
        command,
        status: 6,
        stderr: expect.stringContaining("domain 1"),
      });
    }
  });
});
