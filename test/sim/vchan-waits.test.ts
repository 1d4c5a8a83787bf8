// What xentool vchan does while nobody is connected: what ends its waiting, what becomes of one client's trouble
// when others may come, and that its keys are all it takes back from xenstore.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { chmodSync, closeSync, rmSync, writeFileSync } from "node:fs";
import { connect as connectSocket } from "node:net";
import { join } from "node:path";
import { shim } from "../../src/native/shim.ts";
import { listenAt } from "../../src/native/unix-listener.ts";
import { openConnection } from "../../src/vchan/local.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { VchanCli, type Running } from "./vchan-cli-harness.ts";

const TIMEOUT_MS = 30_000;
const EAGAIN = -11;

let cli: VchanCli;
let watchesBefore = 0;
beforeEach(async () => {
  cli = await VchanCli.start();
  watchesBefore = cli.host.server.statistics.watches;
});
afterEach(async () => {
  await cli[Symbol.asyncDispose]();
});

async function inXenstore<T>(body: (xenstore: Xenstore) => Promise<T>): Promise<T> {
  using platform = cli.host.platform(0);
  using xenstore = await Xenstore.connect(platform);
  return await body(xenstore);
}

async function expectEnd(running: Running, status: number, words: string): Promise<void> {
  const { status: found, stderr } = await running.finished;
  expect(stderr).toContain(words);
  expect(found).toBe(status);
}

/** One local program at a front's socket: what came back, or how the connection failed. */
function visit(path: string): Promise<string> {
  return new Promise((resolve) => {
    const socket = connectSocket(path);
    const chunks: Buffer[] = [];
    socket.on("data", (chunk: Buffer) => chunks.push(chunk));
    socket.on("error", (error: NodeJS.ErrnoException) => resolve(error.code as string));
    socket.on("end", () => resolve(Buffer.concat(chunks).toString()));
    socket.end();
  });
}

/** Who waits watches its keys, and in dom0 also for domains that go. */
async function untilWatches(count: number): Promise<void> {
  while (cli.host.server.statistics.watches < watchesBefore + count) await Bun.sleep(10);
}

async function untilListening(path: string): Promise<void> {
  const text = new TextEncoder().encode(`${path}\0`);
  let fd = -1;
  while (fd < 0) {
    await Bun.sleep(10);
    fd = shim.xt_stream_connect(text, -1);
  }
  closeSync(fd);
}

describe("what ends a wait", () => {
  test(
    "the peer's domain goes",
    async () => {
      const front = join(cli.dir, "front");
      const waiting = [
        cli.run(0, "listen", "1", "served"),
        cli.run(0, "connect", "1", "wanted", "--wait"),
        cli.run(0, "connect", "1", "fronted", "--keep", "--unix", front),
      ];
      await cli.published(0, 1, "served");
      await untilListening(front); // and visits it in vain
      await untilWatches(2 + 2 + 1);
      await cli.host.destroyDomain(1);
      for (const running of waiting) await expectEnd(running, 3, "no domain 1 any more");
    },
    TIMEOUT_MS,
  );

  test(
    "xenstored goes",
    async () => {
      const waiting = [cli.run(0, "listen", "1", "served"), cli.run(1, "connect", "0", "wanted", "--wait")];
      await cli.published(0, 1, "served");
      await untilWatches(2 + 1);
      for (const domid of [0, 1])
        for (const connection of cli.host.server.domains.get(domid)?.connections ?? []) connection.close();
      for (const running of waiting) await expectEnd(running, 5, "went away");
    },
    TIMEOUT_MS,
  );

  test(
    "another server takes the place, or somebody the keys",
    async () => {
      const first = cli.run(0, "listen", "1", "place");
      await cli.published(0, 1, "place");
      const second = cli.run(0, "listen", "1", "place");
      await expectEnd(first, 3, "another server has put its keys at /local/domain/0/data/vchan/1/place");
      await inXenstore((xenstore) => xenstore.rm("/local/domain/0/data/vchan/1/place/ring-ref"));
      await inXenstore((xenstore) => xenstore.rm("/local/domain/0/data/vchan/1/place/event-channel"));
      await expectEnd(
        second,
        3,
        "xentool: waiting for domain 1 at /local/domain/0/data/vchan/1/place, instead of the server whose keys " +
          "were there\nxentool: our keys were removed",
      );
    },
    TIMEOUT_MS,
  );

  test(
    "the time, also for a local program that does not come",
    async () => {
      const front = join(cli.dir, "front");
      const waiting = cli.run(0, "connect", "1", "t", "--unix", front, "--timeout", "0.3");
      await expectEnd(waiting, 6, `no connection to ${front} within 0.3 s`);
    },
    TIMEOUT_MS,
  );
});

test(
  "a benchmark's peer that does not answer",
  async () => {
    const server = cli.run(0, "listen", "1", "mute", "--", "sleep", "60");
    await cli.published(0, 1, "mute"); // its start may take longer than the benchmark waits
    const bench = cli.run(1, "bench", "connect", "0", "mute", "--timeout", "0.5");
    await expectEnd(bench, 6, "domain 0 did nothing for 0.5 s");
    server.child.kill("SIGTERM");
    expect((await server.finished).status).toBe(143);
  },
  TIMEOUT_MS,
);

describe("keys in xenstore", () => {
  test(
    "a server takes back its keys, and no more than it made",
    async () => {
      const all = (xenstore: Xenstore): Promise<string[]> => listing(xenstore, "/local");
      await inXenstore((xenstore) => xenstore.mkdir("/local/domain/0/data/mine"));
      const before = await inXenstore(all);
      for (const path of ["/local/domain/1", "/local", "/local/domain/0/data/mine"])
        await expectEnd(cli.run(0, "listen", "1", path, "--timeout", "0.2"), 6, "no client");
      await expectEnd(cli.run(0, "listen", "1", "/local/new/place", "--timeout", "0.2"), 6, "no client");
      // What lies above its own directory a server cannot know to be its own.
      expect((await inXenstore(all)).filter((path) => path !== "/local/new")).toEqual(before);
    },
    TIMEOUT_MS,
  );
});

/** All paths at and below one. */
async function listing(xenstore: Xenstore, path: string): Promise<string[]> {
  const below: string[] = [];
  for (const name of (await xenstore.directory(path)).sort())
    below.push(...(await listing(xenstore, `${path}/${name}`)));
  return [path, ...below];
}

describe("with --keep the next one is served", () => {
  test(
    "after a local program for whom there was no server",
    async () => {
      const front = join(cli.dir, "front");
      const client = cli.run(1, "connect", "0", "late", "--keep", "--unix", front);
      await untilListening(front);
      expect(await visit(front)).toBe("");
      const server = cli.run(0, "listen", "1", "late", "--keep", "--", "echo", "here");
      await cli.published(0, 1, "late");
      while ((await visit(front)) !== "here\n");
      for (const { child } of [client, server]) child.kill("SIGTERM");
      await expectEnd(client, 143, "domain 0 offers no vchan");
      expect((await server.finished).status).toBe(143);
    },
    TIMEOUT_MS,
  );

  test(
    "after a client whose command could not be started",
    async () => {
      const script = join(cli.dir, "service");
      const install = (): void => {
        writeFileSync(script, "#!/bin/sh\necho served\n");
        chmodSync(script, 0o755);
      };
      install();
      const server = cli.run(0, "listen", "1", "flaky", "--keep", "--", script);
      const once = async (): Promise<[number, string]> => {
        const client = cli.run(1, "connect", "0", "flaky", "--wait");
        void client.child.stdin.end();
        const { status, stdout } = await client.finished;
        return [status, stdout.toString()];
      };
      expect(await once()).toEqual([0, "served\n"]);
      rmSync(script);
      expect(await once()).toEqual([5, ""]);
      install();
      expect(await once()).toEqual([0, "served\n"]);
      server.child.kill("SIGTERM");
      await expectEnd(server, 143, `cannot run ${script}`);
    },
    TIMEOUT_MS,
  );
});

test("a service too busy to let anybody queue is waited for", async () => {
  const path = join(cli.dir, "busy");
  const text = new TextEncoder().encode(`${path}\0`);
  const listener = listenAt(path);
  const queued: number[] = [];
  for (let fd = 0; fd !== EAGAIN;) if ((fd = shim.xt_stream_connect(text, -1)) >= 0) queued.push(fd);
  const connecting = openConnection({ kind: "unix", path });
  expect(await Promise.race([connecting, Bun.sleep(100).then(() => "waits" as const)])).toBe("waits");
  closeSync(shim.xt_stream_accept(listener.fd));
  (await connecting).close();
  for (const fd of queued) closeSync(fd);
  listener.close();
});
