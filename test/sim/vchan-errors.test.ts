// Bad arguments and surroundings of `xentool vchan`: one line that says what is wrong, and the exit status of
// its kind. The host allows each domain few pages, so that gntalloc's limit is met.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { toDomid } from "../../src/core/types.ts";
import type { Platform } from "../../src/platform/platform.ts";
import { openVchanServer } from "../../src/vchan/server.ts";
import { VchanSession } from "../../src/vchan/session.ts";
import { publishKeys, vchanPlace } from "../../src/vchan/rendezvous.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { readUntil } from "../support/process.ts";
import { VchanCli } from "./vchan-cli-harness.ts";

let cli: VchanCli;
beforeAll(async () => {
  cli = await VchanCli.start({ limits: { sharePages: 64 } });
});
afterAll(async () => {
  await cli[Symbol.asyncDispose]();
});

interface Case {
  readonly what: string;
  readonly domid: number;
  readonly args: readonly string[];
  readonly status: number;
  readonly words: RegExp;
  /** Said before, on a line of its own. */
  readonly waits?: string;
}

const USAGE = 2;
const ENVIRONMENT = 3;
const TIMEOUT = 6;

const cases: readonly Case[] = [
  {
    what: "no such domain to serve",
    domid: 0,
    args: ["listen", "99", "t"],
    status: ENVIRONMENT,
    words: /no domain 99/,
  },
  {
    what: "no such domain to connect to",
    domid: 0,
    args: ["connect", "99", "t"],
    status: ENVIRONMENT,
    words: /no domain 99/,
  },
  {
    what: "a number that is no domain's",
    domid: 0,
    args: ["listen", "40000", "t"],
    status: USAGE,
    words: /32751/,
  },
  {
    what: "a name that no domain has",
    domid: 0,
    args: ["listen", "one", "t"],
    status: ENVIRONMENT,
    words: /there is no domain called "one"/,
  },
  {
    what: "a slash in a port",
    domid: 0,
    args: ["listen", "1", "a/b"],
    status: USAGE,
    words: /absolute xenstore path/,
  },
  {
    what: "a path that ends in a slash",
    domid: 0,
    args: ["listen", "1", "/local/"],
    status: USAGE,
    words: /not a xenstore path/,
  },
  {
    what: "a path with two slashes",
    domid: 0,
    args: ["listen", "1", "/local//x"],
    status: USAGE,
    words: /not a xenstore path/,
  },
  {
    what: "a ring that is too large",
    domid: 0,
    args: ["listen", "1", "t", "--read-size", "1048577"],
    status: USAGE,
    words: /is not a size from 0 to 1M/,
  },
  {
    what: "a ring of no size",
    domid: 0,
    args: ["listen", "1", "t", "--write-size", "-1"],
    status: USAGE,
    words: /is not a size from 0 to 1M/,
  },
  {
    what: "two local ends",
    domid: 0,
    args: ["listen", "1", "t", "--unix", "/x", "--tcp", "a:1"],
    status: USAGE,
    words: /exclude each other/,
  },
  {
    what: "a command and a socket",
    domid: 0,
    args: ["listen", "1", "t", "--unix", "/x", "--", "cat"],
    status: USAGE,
    words: /exclude/,
  },
  {
    what: "half an address",
    domid: 0,
    args: ["listen", "1", "t", "--tcp", "host"],
    status: USAGE,
    words: /HOST:PORT/,
  },
  {
    what: "keeping one standard input",
    domid: 1,
    args: ["connect", "0", "t", "--keep"],
    status: USAGE,
    words: /--unix or --tcp/,
  },
  {
    what: "nobody serves",
    domid: 1,
    args: ["connect", "0", "t"],
    status: ENVIRONMENT,
    words: /offers no vchan.*--wait/,
  },
  {
    what: "nobody serves in time",
    domid: 1,
    args: ["connect", "0", "t", "--wait", "--timeout", "1"],
    status: TIMEOUT,
    words: /within 1 s/,
    waits: "waiting for domain 0 to serve /local/domain/0/data/vchan/1/t",
  },
  {
    what: "nobody comes in time",
    domid: 0,
    args: ["listen", "1", "t", "--timeout", "1"],
    status: TIMEOUT,
    words: /no client in domain 1/,
    waits: "waiting for domain 1 at /local/domain/0/data/vchan/1/t",
  },
  {
    what: "no right to the path",
    domid: 1,
    args: ["listen", "0", "/local/domain/0/x"],
    status: ENVIRONMENT,
    words: /EACCES/,
  },
  {
    what: "more pages than gntalloc gives",
    domid: 0,
    args: ["listen", "1", "t", "--read-size", "1048576"],
    status: ENVIRONMENT,
    words: /256 more pages.*gntalloc.*ENOSPC/,
  },
  { what: "no such command", domid: 0, args: ["vchan"], status: USAGE, words: /.+/ },
];

describe("one line and the right status", () => {
  for (const { what, domid, args, status, words, waits } of cases)
    test(what, async () => {
      const { status: got, stderr, stdout } = await cli.run(domid, ...args).finished;
      expect([got, stdout.toString()]).toEqual([status, ""]);
      const lines = stderr.trimEnd().split("\n");
      if (waits !== undefined) expect(lines.shift()).toBe(`xentool: ${waits}`);
      expect(lines).toEqual([expect.stringMatching(words)]);
    });
});

test("a server's orders that cannot be are its fault: a protocol error", async () => {
  using platform = cli.host.platform(0);
  using xenstore = await Xenstore.connect(platform);
  const server = openVchanServer(platform, { peer: toDomid(1), orders: { left: 10, right: 11 } });
  new DataView(server.endpoint.page.bytes.buffer).setUint16(16, 27, true);
  await publishKeys(xenstore, vchanPlace("bad", toDomid(0), toDomid(1)), server);
  const { status, stderr } = await cli.run(1, "connect", "0", "bad").finished;
  expect([status, stderr]).toEqual([4, expect.stringContaining("order is 27, outside 10 to 20")]);
  server.endpoint.close();
});

test("a dead server's keys are recognised, and --wait waits for its successor", async () => {
  const dead = cli.run(0, "listen", "1", "stale");
  await cli.published(0, 1, "stale");
  dead.child.kill(9);
  await dead.finished;
  await cli.published(0, 1, "stale");
  const { status, stderr } = await cli.run(1, "connect", "0", "stale").finished;
  expect([status, stderr]).toEqual([3, expect.stringContaining("cannot be used")]);
  const waiting = cli.run(1, "connect", "0", "stale", "--wait");
  const successor = cli.run(0, "listen", "1", "stale");
  await Promise.all([waiting.feed("found"), successor.feed("you")]);
  expect((await waiting.finished).stdout.toString()).toBe("you");
  expect((await successor.finished).stdout.toString()).toBe("found");
});

test("its own domain on real Xen is refused before anything is touched", async () => {
  const platform = { name: "xen", domid: toDomid(3) } as Platform;
  const place = vchanPlace("t", toDomid(3), toDomid(3));
  const { signal } = new AbortController();
  const spawnWorker = (): Worker => {
    throw new Error("a worker was started");
  };
  const opening = VchanSession.open({ platform, place, spawnWorker, signal }, "server");
  expect(opening).rejects.toMatchObject({
    kind: "environment",
    message: expect.stringContaining("this domain"),
  });
});

test("a busy server is said to be busy, and --wait waits for a turn", async () => {
  const at = "/local/domain/0/data/vchan/1/busy";
  const server = cli.run(0, "listen", "1", "busy", "--keep", "--", "cat");
  await cli.published(0, 1, "busy");
  const first = cli.run(1, "connect", "0", "busy");
  await first.feed("one", true);
  await first.received(3);
  const refused = await cli.run(1, "connect", "0", "busy").finished;
  expect([refused.status, refused.stderr]).toEqual([
    3,
    "xentool: the vchan server in domain 0 is busy: it serves one client at a time; --wait waits for a turn\n",
  ]);
  const second = Bun.spawn(cli.argv("connect", "0", "busy", "--wait"), {
    env: cli.env(1),
    stdio: [Buffer.from("two"), "pipe", "pipe"],
  });
  expect(await readUntil(second.stderr, "\n")).toBe(
    `xentool: waiting for domain 0 to serve ${at}, which it does for one client at a time: another has it now\n`,
  );
  await first.feed("");
  expect((await first.finished).stdout.toString()).toBe("one");
  expect([await second.stdout.text(), await second.exited]).toEqual(["two", 0]);
  server.child.kill("SIGTERM");
  expect(await server.finished).toMatchObject({
    status: 143,
    stderr: `xentool: waiting for domain 1 at ${at}\n`,
  });
});
