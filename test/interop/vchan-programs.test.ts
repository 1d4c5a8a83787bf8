// Programs on Debian's libxenvchan, unmodified, at the other end of `xentool vchan` on a simulated host: each as server
// and as client with every byte compared, either end killed at any time. vchan-socket-proxy is one of them, Xen's own.
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import { globSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { join } from "node:path";
import { executable } from "../e2e/executable.ts";
import { pattern } from "../sim/blk-harness.ts";
import { readUntil, type Child } from "../support/process.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { compileVchanPeer, ProgramHost, succeeds } from "./program-host.ts";

const BYTES = 300_000;
/** More than is exchanged before one end is killed. */
const ENDLESS = 1_000_000_000;
const proxy = globSync("/usr/lib/xen-*/bin/vchan-socket-proxy").sort().at(-1) ?? "vchan-socket-proxy";

let scratch: string;
let peer: string;
let host: ProgramHost;
beforeAll(async () => {
  scratch = temporaryDirectory();
  peer = join(scratch, "vchan-peer");
  await compileVchanPeer(peer);
});
afterAll(() => removeDirectory(scratch));
beforeEach(async () => {
  host = await ProgramHost.start();
});
afterEach(() => host.close());

/** A shell command in a domain, in which $peer and $xentool are the two programs. */
function shell(domid: number, command: string): Child {
  return host.program(
    domid,
    "bash",
    "-c",
    command.replaceAll("$peer", peer).replaceAll("$xentool", executable),
  );
}

/** Runs commands in domains 1 and 0 at once; both must succeed, and leave nothing. */
async function together(one: string, zero: string): Promise<void> {
  await Promise.all([succeeds(shell(1, one)), succeeds(shell(0, zero))]);
  expect(await host.host.settle()).toEqual([]);
}

const SENDS = `$peer pattern ${BYTES} 2 | $xentool vchan`;
const CHECKS = `| $peer check ${BYTES} 1`;
const STREAMS = `stream ${BYTES} 1 ${BYTES} 2`;

test.each([
  [1024, 2048],
  [65_536, 65_536],
])("libxenvchan and xentool, each as server and as client, rings of %d and %d bytes", async (read, write) => {
  await together(
    `$peer server 0 /local/domain/1/data/vchan/0/a ${read} ${write} ${STREAMS}`,
    `${SENDS} connect 1 a --wait ${CHECKS}`,
  );
  await together(
    `${SENDS} listen 0 b --read-size ${read} --write-size ${write} ${CHECKS}`,
    `$peer client 1 /local/domain/1/data/vchan/0/b ${STREAMS}`,
  );
  await together(
    `$peer server 0 data/c ${read} ${write} ${STREAMS}`,
    `$peer client 1 /local/domain/1/data/c stream ${BYTES} 2 ${BYTES} 1`,
  );
});

const ENDS = `< <($peer pattern ${ENDLESS} 2)`;
const PEER_STREAMS = `stream ${ENDLESS} 1 ${ENDLESS} 2`;
const PAIRS = [
  {
    server: `exec $peer server 0 /local/domain/1/data/vchan/0/k 4096 65536 ${PEER_STREAMS}`,
    client: `exec $xentool vchan connect 1 k --wait ${ENDS}`,
  },
  {
    server: `exec $xentool vchan listen 0 k ${ENDS}`,
    client: `exec $peer client 1 /local/domain/1/data/vchan/0/k ${PEER_STREAMS}`,
  },
] as const;
const seed = chosenSeed();

const VICTIMS = [
  ["libxenvchan's server", 0, "server"],
  ["xentool as client", 0, "client"],
  ["xentool as server", 1, "server"],
  ["libxenvchan's client", 1, "client"],
] as const;

/** Starts a pair; `victim` is to be killed. */
function pair(at: 0 | 1, victim: "server" | "client"): { xentool: Child; victim: Child; other: Child } {
  const server = shell(1, PAIRS[at].server);
  const client = shell(0, PAIRS[at].client);
  const killed = victim === "server" ? server : client;
  return { xentool: at === 0 ? client : server, victim: killed, other: killed === server ? client : server };
}

test.each(VICTIMS)(
  `%s is killed: the other end ends, and nothing is left (SEED=${seed})`,
  async (_who, at, who) => {
    const random = new Random(seed);
    for (let round = 0; round < 5; round++) {
      const { xentool, victim, other } = pair(at, who);
      const enough = random.below(1 << (4 * round + 1)) + 1;
      const said = Promise.all([victim.stderr.text(), other.stderr.text()]);
      let bytes = 0;
      for await (const chunk of xentool.stdout) {
        bytes += chunk.length;
        if (bytes >= enough) victim.kill("SIGKILL");
      }
      if (bytes < enough) for (const each of [victim, other]) each.kill();
      await Promise.all([victim.exited, other.exited]);
      expect(bytes, (await said).join("")).toBeGreaterThanOrEqual(enough);
      expect(await host.host.settle()).toEqual([]);
    }
  },
);

test.each(VICTIMS)(`%s is killed while it comes up (SEED=${seed})`, async (_who, at, who) => {
  const random = new Random(seed);
  for (let round = 0; round < 5; round++) {
    const { victim, other } = pair(at, who);
    await Bun.sleep(random.below(200));
    victim.kill("SIGKILL");
    await victim.exited;
    // If it has not met this one, it waits for the next.
    other.kill("SIGTERM");
    await other.exited;
    expect(await host.host.settle()).toEqual([]);
  }
});

/** Sends bytes through a program, and takes as many; then closes its input. Returns what came. */
async function exchange(domid: number, argv: readonly string[], bytes: Uint8Array): Promise<Uint8Array> {
  const env = host.environment(domid);
  const child = host.started(Bun.spawn([...argv], { env, stdin: "pipe", stdout: "pipe", stderr: "pipe" }));
  const complaints = child.stderr.text();
  const sent = Promise.all([child.stdin.write(bytes), child.stdin.flush()]);
  const chunks: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of child.stdout) {
    chunks.push(chunk);
    length += chunk.length;
    if (length >= bytes.length) break;
  }
  await sent;
  await child.stdin.end();
  expect(await child.exited, await complaints).toBe(0);
  return Buffer.concat(chunks);
}

async function echoService(path: string): Promise<Server> {
  const server = createServer((socket) => socket.pipe(socket));
  await new Promise<void>((resolve) => server.listen(path, resolve));
  return server;
}

test("vchan-socket-proxy as server and as client, in front of a socket, several sessions each", async () => {
  const echo = host.file("echo");
  const service = await echoService(echo);
  const bytes = pattern(BYTES);
  const path = "/local/domain/0/data/vchan/1/proxy";
  const server = host.program(0, proxy, "-m", "server", "1", path, echo);
  const connect = [executable, "vchan", "connect", "0", "proxy", "--wait", "--linger", "0"];
  for (let round = 0; round < 2; round++) expect(await exchange(1, connect, bytes)).toEqual(bytes);
  server.kill("SIGKILL");
  await server.exited;

  const listener = host.xentool(0, "vchan", "listen", "1", "own", "--keep", "--json", "--unix", echo);
  const client = [proxy, "0", "/local/domain/0/data/vchan/1/own", "-"];
  for (let round = 0; round < 4; round++) {
    expect(await exchange(1, client, bytes)).toEqual(bytes);
    // Until then the next proxy would find the ring that this one has closed, and end.
    await readUntil(listener.stdout, "bytesReceived");
  }
  listener.kill("SIGTERM");
  await listener.exited;
  service.close();
});
