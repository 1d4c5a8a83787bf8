// How `xentool vchan` ends when the program at the far end cannot be told that our input has ended, as those of
// libxenvchan cannot; and what --send and --receive make of that.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { join } from "node:path";
import { toDomid } from "../../src/core/types.ts";
import type { Platform } from "../../src/platform/platform.ts";
import { layoutOf } from "../../src/protocol/vchan.ts";
import { openVchanClient } from "../../src/vchan/client.ts";
import type { VchanEndpoint } from "../../src/vchan/endpoint.ts";
import { publishKeys, readKeys, vchanPlace, withdrawKeys } from "../../src/vchan/rendezvous.ts";
import { openVchanServer } from "../../src/vchan/server.ts";
import { openConnection } from "../../src/vchan/local.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { chosenSeed } from "../support/random.ts";
import { checksum, noise, VchanCli, withoutWaits, type Running } from "./vchan-cli-harness.ts";

const TIMEOUT_MS = 30_000;
/** A host counts as gone after 30 s. */
const SLOW_MS = 35_000;
const seed = chosenSeed();
const ORDERS = { left: 12, right: 12 };
const END_WORDS_BYTES = 8;
const [DOM0, GUEST] = [toDomid(0), toDomid(1)];

let cli: VchanCli;
beforeEach(async () => {
  cli = await VchanCli.start();
});
afterEach(async () => {
  await cli[Symbol.asyncDispose]();
});

/** Until the peer has closed: what it sent. */
async function readToTheEnd(endpoint: VchanEndpoint): Promise<string> {
  const bytes = Buffer.alloc(4096);
  let text = "";
  while (!endpoint.atEnd) {
    const count = endpoint.read(bytes);
    text += bytes.toString("utf8", 0, count);
    if (count === 0) await Bun.sleep(5);
  }
  return text;
}

/** As libxenvchan leaves the page: nobody says anything about ends. */
function forgetEndWords(endpoint: VchanEndpoint): VchanEndpoint {
  const at = layoutOf(ORDERS).endWordsAt;
  endpoint.page.bytes.fill(0, at, at + END_WORDS_BYTES);
  return endpoint;
}

/** Runs `body` with a program in domain 1 that knows nothing of ends, and the xentool in dom0 that it talks to. */
const roles = {
  async server(args: readonly string[], body: (peer: VchanEndpoint, xentool: Running) => Promise<void>) {
    await inGuest(async (platform, xenstore) => {
      const { endpoint, ringRef, port } = openVchanServer(platform, { peer: DOM0, orders: ORDERS });
      const place = vchanPlace("t", GUEST, DOM0);
      const keys = { ringRef, port };
      const { ownsDirectory } = await publishKeys(xenstore, place, keys);
      using peer = forgetEndWords(endpoint);
      await body(peer, cli.run(0, "connect", "1", "t", "--json", ...args));
      await withdrawKeys(xenstore, place, keys, ownsDirectory);
    });
  },
  async client(args: readonly string[], body: (peer: VchanEndpoint, xentool: Running) => Promise<void>) {
    await inGuest(async (platform, xenstore) => {
      const sizes = ["--read-size", "4096", "--write-size", "4096"];
      const xentool = cli.run(0, "listen", "1", "t", "--json", ...sizes, ...args);
      await cli.published(0, 1, "t");
      const keys = await readKeys(xenstore, vchanPlace("t", DOM0, GUEST));
      if (keys === undefined) throw new Error("the keys went");
      using peer = forgetEndWords(openVchanClient(platform, { peer: DOM0, ...keys }));
      await body(peer, xentool);
    });
  },
};

async function inGuest(body: (platform: Platform, xenstore: Xenstore) => Promise<void>): Promise<void> {
  using platform = cli.host.platform(1);
  using xenstore = await Xenstore.connect(platform);
  await body(platform, xenstore);
}

describe.each(["server", "client"] as const)(
  "a %s that reads until the end and knows nothing of ours",
  (role) => {
    test(
      "is closed after 5 seconds of silence, with a word about it",
      async () => {
        await roles[role]([], async (peer, xentool) => {
          await xentool.feed("everything");
          expect(await readToTheEnd(peer)).toBe("everything");
          const { status, stderr } = await xentool.finished;
          const [warning, summary] = stderr.split("\n");
          expect(warning).toContain("domain 1 has read everything and sent nothing for 5 s");
          expect(warning).toContain("--linger");
          expect(JSON.parse(summary ?? "")).toMatchObject({ end: "lingered", bytesSent: 10, bytesUnread: 0 });
          expect(status).toBe(0);
        });
      },
      TIMEOUT_MS,
    );

    test(
      "is closed at once with --send, and what it said by then is handed on",
      async () => {
        await roles[role](["--send"], async (peer, xentool) => {
          peer.write(Buffer.from("hello"));
          await xentool.received(5);
          await xentool.feed("everything");
          expect(await readToTheEnd(peer)).toBe("everything");
          const { status, stdout, stderr } = await xentool.finished;
          expect(JSON.parse(stderr)).toMatchObject({ end: "sent" });
          expect([status, stdout.toString()]).toEqual([0, "hello"]);
        });
      },
      TIMEOUT_MS,
    );

    test(
      "is waited for with --linger forever, and its answer comes",
      async () => {
        await roles[role](["--linger", "forever"], async (peer, xentool) => {
          await xentool.feed("question");
          const bytes = Buffer.alloc(8);
          while (!peer.recv(bytes)) await Bun.sleep(5);
          peer.write(Buffer.from("answer"));
          await xentool.received(6);
          peer.close();
          const { status, stderr } = await xentool.finished;
          expect([status, JSON.parse(stderr).end]).toEqual([0, "peer-closed"]);
        });
      },
      TIMEOUT_MS,
    );
  },
);

test(
  "--send ends a pipe to a xentool whose own input goes on",
  async () => {
    const server = cli.run(0, "listen", "1", "t");
    const client = cli.run(1, "connect", "0", "t", "--wait", "--send", "--json");
    await client.feed("everything");
    const [sent, got] = await Promise.all([client.finished, server.finished]);
    expect(JSON.parse(sent.stderr)).toMatchObject({ end: "sent", bytesUnread: 0 });
    expect([sent.status, got.status, got.stdout.toString(), withoutWaits(got.stderr)]).toEqual([
      0,
      0,
      "everything",
      "",
    ]);
  },
  TIMEOUT_MS,
);

test(
  `a command that answers gets all that was sent before its peer closed, seed ${seed}`,
  async () => {
    const bytes = noise(seed, 50_000); // a pipe holds it
    const line = `sleep 0.5; exec tee ${cli.dir}/got`;
    const server = cli.run(0, "listen", "1", "t", "--", "sh", "-c", line);
    const client = cli.run(1, "connect", "0", "t", "--wait", "--send");
    await client.feed(bytes);
    const both = await Promise.all([client.finished, server.finished]);
    expect(both.map(({ status, stderr }) => [status, withoutWaits(stderr)])).toEqual([
      [0, ""],
      [0, ""],
    ]);
    expect(checksum(readFileSync(join(cli.dir, "got")))).toBe(checksum(bytes));
  },
  TIMEOUT_MS,
);

test(
  `SIGTERM leaves a command the time to take what is in its pipe, seed ${seed}`,
  async () => {
    const bytes = noise(seed, 50_000);
    const line = `echo $$; exec cat >${cli.dir}/got`;
    await roles.client(["--", "sh", "-c", line], async (peer, xentool) => {
      const said = Buffer.alloc(16);
      let length = 0;
      while (!said.includes("\n")) {
        length += peer.read(said.subarray(length));
        await Bun.sleep(5);
      }
      const pid = Number.parseInt(said.toString("utf8", 0, length));
      process.kill(pid, "SIGSTOP");
      for (let sent = 0; sent < bytes.length || peer.unread > 0; await Bun.sleep(1))
        sent += peer.write(bytes.subarray(sent));
      xentool.child.kill("SIGTERM");
      await Bun.sleep(200);
      process.kill(pid, "SIGCONT");
      expect((await xentool.finished).status).toBe(143);
    });
    expect(checksum(readFileSync(join(cli.dir, "got")))).toBe(checksum(bytes));
  },
  TIMEOUT_MS,
);

test(
  `a connection that is standard input and output gets all of a peer that is gone, seed ${seed}`,
  async () => {
    const bytes = noise(seed, 1_000_000);
    const got = Promise.withResolvers<string>();
    const accepted = Promise.withResolvers<Socket>();
    const service = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => {
      const chunks: Buffer[] = [];
      const answering = setInterval(() => void socket.write("still here"), 5);
      socket.on("data", (chunk: Buffer) => void chunks.push(chunk));
      socket.on("error", () => {});
      socket.on("end", () => void socket.end());
      socket.on("close", () => {
        clearInterval(answering);
        got.resolve(checksum(Buffer.concat(chunks)));
      });
      accepted.resolve(socket);
    });
    await new Promise<void>((resolve) => service.listen(0, "127.0.0.1", resolve));
    const { port } = service.address() as AddressInfo;
    const { end, close } = await openConnection({ kind: "tcp", host: "127.0.0.1", port });
    const server = Bun.spawn(cli.argv("listen", "1", "t"), {
      env: cli.env(0),
      stdio: [end.output.fd, end.output.fd, "ignore"],
    });
    close();
    const client = cli.run(1, "connect", "0", "t", "--wait", "--send");
    await client.feed(bytes);
    expect((await client.finished).status).toBe(0);
    setTimeout(async () => (await accepted.promise).resume(), 4000);
    await server.exited; // with answers that the client did not want
    expect(await got.promise).toBe(checksum(bytes));
    await new Promise((resolve) => service.close(resolve));
  },
  TIMEOUT_MS,
);

test(
  "a TCP service that takes nothing for longer than a host may be away gets everything then",
  async () => {
    const got = Promise.withResolvers<string>();
    const service = createServer({ pauseOnConnect: true }, async (socket) => {
      await Bun.sleep(SLOW_MS);
      const chunks: Buffer[] = [];
      for await (const chunk of socket) chunks.push(chunk as Buffer);
      got.resolve(checksum(Buffer.concat(chunks)));
    });
    await new Promise<void>((resolve) => service.listen(0, "127.0.0.1", resolve));
    const { port } = service.address() as AddressInfo;
    const bytes = noise(seed, 8_000_000); // more than the kernel holds for a connection
    const server = cli.run(0, "listen", "1", "t", "--tcp", `127.0.0.1:${port}`);
    const client = cli.run(1, "connect", "0", "t", "--wait");
    const [, sent, served] = await Promise.all([client.feed(bytes), client.finished, server.finished]);
    expect([sent.status, served.status, withoutWaits(served.stderr)]).toEqual([0, 0, ""]);
    expect(await got.promise).toBe(checksum(bytes));
    await new Promise((resolve) => service.close(resolve));
  },
  SLOW_MS + TIMEOUT_MS,
);

describe("a job in the background of a terminal", () => {
  /** Runs `xentool vchan ARGS >out &` in a terminal's shell, with a peer that sends; the job's status. */
  async function statusOf(...args: readonly string[]): Promise<number> {
    const line = 'set -m; "$@" >out & wait $!; echo $? >status; kill -KILL $! 2>/dev/null; true';
    const argv = cli.argv("listen", "1", "t", ...args);
    await using shell = Bun.spawn(["bash", "-c", line, "bash", ...argv], {
      cwd: cli.dir,
      env: cli.env(0),
      terminal: {},
    });
    const peer = cli.run(1, "connect", "0", "t", "--wait");
    await peer.feed("everything");
    await shell.exited;
    return Number(readFileSync(join(cli.dir, "status"), "utf8"));
  }

  test(
    "is not stopped by SIGTTIN with --receive",
    async () => {
      expect(await statusOf("--receive")).toBe(0);
      expect(readFileSync(join(cli.dir, "out"), "utf8")).toBe("everything");
    },
    TIMEOUT_MS,
  );

  test(
    "is stopped without",
    async () => {
      const STOPPED = 128 + 21;
      expect(await statusOf()).toBe(STOPPED);
    },
    TIMEOUT_MS,
  );
});
