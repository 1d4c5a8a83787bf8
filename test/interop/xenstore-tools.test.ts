// Independent judges of the xenstore server: Debian's unmodified xenstore-* tools (package xenstore-utils)
// and Xen's own test-xenstore (package xen-utils-<version>), through libxenstore and XENSTORED_PATH.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { globSync } from "node:fs";
import { join } from "node:path";
import { PERSONALITY_NAMES } from "../../src/xenstore/server/personality.ts";
import { XenstoreServer, type XenstoreServerStatistics } from "../../src/xenstore/server/server.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { finished, start, type Finished } from "../support/process.ts";

const testXenstore = globSync("/usr/lib/xen-*/bin/test-xenstore").sort().at(-1);

describe.each([...PERSONALITY_NAMES])("Xen's tools against %s", (personality) => {
  let dir: string;
  let server: XenstoreServer;
  let before: XenstoreServerStatistics;

  const spawn = (command: readonly string[], domid = 0) =>
    start(command, { env: { ...process.env, XENSTORED_PATH: join(dir, `${domid}`) } });

  const run = (command: readonly string[], domid = 0): Promise<Finished> => finished(spawn(command, domid));

  const output = async (...command: string[]): Promise<string> => {
    const { status, stdout, stderr } = await run(command);
    expect({ command, status, stderr }).toEqual({ command, status: 0, stderr: "" });
    return stdout;
  };

  beforeEach(async () => {
    dir = temporaryDirectory();
    server = new XenstoreServer({ personality });
    server.createDomain(1, "guest");
    await server.listen(join(dir, "0"), 0);
    await server.listen(join(dir, "1"), 1);
    before = server.statistics;
  });

  afterEach(async () => {
    while (server.statistics.connections > 0) await new Promise(setImmediate);
    const { nodes: _now, ...left } = server.statistics;
    const { nodes: _then, ...expected } = before;
    expect(left).toEqual(expected);
    server.close();
    removeDirectory(dir);
  });

  test("test-xenstore passes, 12 of 12", async () => {
    expect(testXenstore).toBeDefined();
    const { status, stdout, stderr } = await run([testXenstore as string, "-i", "10"]);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(stdout.trim().split("\n")).toHaveLength(12);
    expect(stdout).not.toContain("failed");
  });

  test("xenstore-write and xenstore-read", async () => {
    await output("xenstore-write", "/a/one", "1", "/a/two", "second value");
    expect(await output("xenstore-read", "/a/one", "/a/two")).toBe("1\nsecond value\n");
    expect((await run(["xenstore-read", "/a/three"])).status).not.toBe(0);
  });

  test("xenstore-list and xenstore-ls", async () => {
    await output("xenstore-write", "/a/one", "1", "/a/two/deep", "2");
    expect(await output("xenstore-list", "/a")).toBe("one\ntwo\n");
    expect(await output("xenstore-ls", "-f", "/a")).toBe('/a/one = "1"\n/a/two = ""\n/a/two/deep = "2"\n');
    expect(await output("xenstore-ls", "-f", "-p", "/a/two")).toContain("(n0)");
  });

  test("xenstore-list of a large directory", async () => {
    const names = Array.from({ length: 400 }, (_, i) => `some-rather-long-name-${i}`);
    for (let at = 0; at < names.length; at += 100)
      await output("xenstore-write", ...names.slice(at, at + 100).flatMap((name) => [`/big/${name}`, ""]));
    if (server.personality.oversizeReply === "send") {
      expect((await run(["xenstore-list", "/big"])).status).not.toBe(0); // as libxenstore takes oxenstored's
      return;
    }
    expect((await output("xenstore-list", "/big")).trim().split("\n").sort()).toEqual(names.sort());
  });

  test("xenstore-exists and xenstore-rm", async () => {
    await output("xenstore-write", "/a/b/c", "1");
    expect((await run(["xenstore-exists", "/a/b/c"])).status).toBe(0);
    await output("xenstore-rm", "-t", "/a/b/c");
    expect((await run(["xenstore-exists", "/a/b/c"])).status).toBe(1);
    expect((await run(["xenstore-exists", "/a"])).status).toBe(1);
  });

  test("xenstore-chmod", async () => {
    await output("xenstore-write", "/a/b", "1");
    await output("xenstore-chmod", "-r", "/a", "n0", "r1");
    expect(await output("xenstore-ls", "-f", "-p", "/a")).toMatch(/\(n0,r1\)/);
    expect((await run(["xenstore-read", "/a/b"], 1)).stdout).toBe("1\n");
    expect((await run(["xenstore-write", "/a/b", "2"], 1)).status).not.toBe(0);
  });

  test("xenstore-watch", async () => {
    const child = spawn(["xenstore-watch", "-n", "3", "/w"]);
    while (server.statistics.watches === 0) await new Promise(setImmediate);
    await output("xenstore-write", "/w/x", "1");
    await output("xenstore-write", "/w/y", "1");
    expect(await child.stdout.text()).toBe("/w\n/w/x\n/w/y\n");
    expect(await child.exited).toBe(0);
  });

  test("a guest sees and changes its own, and nothing else", async () => {
    expect((await run(["xenstore-read", "name"], 1)).stdout).toBe("guest\n");
    expect((await run(["xenstore-write", "data/x", "1"], 1)).status).toBe(0);
    expect((await run(["xenstore-ls", "-p", "data"], 1)).stdout).toContain("n1");
    for (const path of ["/local/domain/0/name", "/local/domain", "/tool/xenstored"])
      expect((await run(["xenstore-list", path], 1)).status).not.toBe(0);
    expect((await run(["xenstore-write", "name", "other"], 1)).status).not.toBe(0);
  });
});
