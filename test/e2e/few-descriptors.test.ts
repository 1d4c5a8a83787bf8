// However few descriptors there are, a command ends with one line and status 3 or 5, or does its work: each is run
// with one descriptor more until it succeeds.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { SimHost } from "../../src/sim/host.ts";
import { executable, spawnXentool } from "./executable.ts";
import { readUntil } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

/** With fewer Bun itself does not start, or cannot be told from one that does not. */
const FEWEST = 8;
const MORE_THAN_ENOUGH = 60;
const LACKING = [3, 5];
const TIMEOUT_MS = 120_000;

let host: SimHost;
let dir: string;

beforeAll(async () => {
  host = await SimHost.start();
  dir = temporaryDirectory();
  writeFileSync(join(dir, "disk"), "");
  truncateSync(join(dir, "disk"), 1 << 20);
});

afterAll(async () => {
  const leaks = await host.settle();
  await host.stop();
  removeDirectory(dir);
  expect(leaks).toEqual([]);
});

function start(args: readonly string[], limit: number) {
  return Bun.spawn(["bash", "-c", `ulimit -n ${limit}; exec "$@"`, "bash", executable, ...args], {
    cwd: dir,
    env: { PATH: process.env["PATH"] ?? "", XENTOOL_SIM: host.dir },
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
  });
}

/** Runs it with so many descriptors, until it ends or is at work, which `atWork` on stderr shows. */
async function run(args: readonly string[], limit: number, atWork: string | undefined) {
  const child = start(args, limit);
  const decoder = new TextDecoder();
  let stderr = "";
  let works = false;
  for await (const chunk of child.stderr) {
    stderr += decoder.decode(chunk, { stream: true });
    if (atWork === undefined || works || !stderr.includes(atWork)) continue;
    works = true;
    child.kill("SIGTERM");
  }
  const status = await child.exited;
  return { stderr, status, done: works || status === 0 };
}

const disk = ["--domid", "1", "--vdev", "xvdb"];

describe("with too few descriptors", () => {
  test.each<[string, readonly string[], string | undefined]>([
    ["doctor", ["doctor"], undefined],
    ["sim run", ["sim", "run", "--", "true"], undefined],
    ["sim status", ["sim", "status"], undefined],
    ["blkback list", ["blkback", "list"], undefined],
    ["blkback stats", ["blkback", "stats"], undefined],
    ["blkback serve", ["blkback", "serve", "disk", ...disk], "offering"],
    ["blkback watch", ["blkback", "watch"], "serving"],
    ["vchan listen", ["vchan", "listen", "1", "t", "--timeout", "2"], "no client"],
    ["vchan connect", ["vchan", "connect", "1", "t", "--timeout", "2", "--wait"], "no vchan server"],
    ["xsring inspect", ["xsring", "inspect", "--domid", "1"], undefined],
    ["xsring trace", ["xsring", "trace", "--domid", "1", "--duration", "0.1"], undefined],
  ])(
    "%s",
    async (_what, args, atWork) => {
      for (let limit = FEWEST; ; limit++) {
        const { stderr, status, done } = await run(args, limit, atWork);
        if (done) break;
        expect(LACKING).toContain(status);
        expect(limit).toBeLessThan(MORE_THAN_ENOUGH);
        if (args[0] === "doctor") expect(stderr).toBe("");
        else expect(stderr).toMatch(/^xentool: [^\n]*\n$/);
      }
    },
    TIMEOUT_MS,
  );

  test(
    "for another worker: serve says so when a guest comes, and goes on",
    async () => {
      for (let limit = FEWEST; ; limit++) {
        expect(limit).toBeLessThan(MORE_THAN_ENOUGH);
        const server = start(["blkback", "serve", "disk", ...disk], limit);
        const said = readUntil(server.stderr, "offering").catch(() => undefined);
        if ((await said) === undefined) continue;
        const frontend = spawnXentool(["blkfront", "bench", "--vdev", "xvdb", "--timeout", "10"], {
          env: { XENTOOL_SIM: host.dir, XENTOOL_DOMID: "1" },
        });
        await readUntil(server.stderr, "cannot start a worker: EMFILE");
        server.kill("SIGTERM");
        expect(await server.exited).toBe(143);
        frontend.kill("SIGKILL");
        await frontend.exited;
        break;
      }
    },
    TIMEOUT_MS,
  );
});
