// One client of a vchan's server after another: between two of them there is something to be found at every moment, and
// a client that comes a moment too early is not turned away.
import { afterEach, beforeEach, expect, spyOn, test } from "bun:test";
import { toDomid } from "../../src/core/types.ts";
import { VCHAN_CLI_LIVE } from "../../src/protocol/vchan.ts";
import { areKeys, publishKeys, readKeys, vchanPlace, type VchanKeys } from "../../src/vchan/rendezvous.ts";
import { openVchanServer, type VchanServer } from "../../src/vchan/server.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { readUntil } from "../support/process.ts";
import { VchanCli } from "./vchan-cli-harness.ts";

const TIMEOUT_MS = 60_000;
const CLIENTS = 4;
const [DOM0, GUEST] = [toDomid(0), toDomid(1)];
const PATH = "/local/domain/0/data/vchan/1/turns";
const PLACE = vchanPlace("turns", DOM0, GUEST);
const TURN =
  `xentool: waiting for domain 0 to serve ${PATH}, which it does for one client at a time: ` +
  "it has not ended with its last one yet\n";

/** Pages of the two default rings and the shared page. */
const PAGES = 33;

let cli: VchanCli;

async function start(sharePages: number): Promise<void> {
  await cli[Symbol.asyncDispose]();
  cli = await VchanCli.start({ limits: { sharePages } });
}

beforeEach(async () => {
  cli = await VchanCli.start();
});
afterEach(async () => {
  await cli[Symbol.asyncDispose]();
});

/** Notes whenever a node changes whether there is a server to be found; only what differs from the time before. */
function offers(): boolean[] {
  const { watches } = cli.host.server;
  const seen: boolean[] = [];
  const fire = watches.fire.bind(watches);
  spyOn(watches, "fire").mockImplementation((change, tree) => {
    const isOffered =
      tree.get(`${PATH}/ring-ref`) !== undefined && tree.get(`${PATH}/event-channel`) !== undefined;
    if (isOffered !== (seen.at(-1) ?? false)) seen.push(isOffered);
    fire(change, tree);
  });
  return seen;
}

/** Serves one client after another, none of which waits. */
async function serveMany(): Promise<void> {
  const server = cli.run(0, "listen", "1", "turns", "--keep", "--", "echo", "here");
  await cli.published(0, 1, "turns");
  for (let i = 0; i < CLIENTS; i++) {
    const client = cli.run(1, "connect", "0", "turns", "--receive");
    const { status, stdout } = await client.finished;
    expect([status, stdout.toString()]).toEqual([0, "here\n"]);
  }
  server.child.kill("SIGTERM");
  expect((await server.finished).status).toBe(143);
}

test(
  "with --keep there is a server to be found at every moment, and each client is served without --wait",
  async () => {
    const seen = offers();
    await serveMany();
    expect(seen).toEqual([true, false]);
  },
  TIMEOUT_MS,
);

test(
  "if the pages of two clients pass gntalloc's limit, there is none for a moment",
  async () => {
    await start(2 * PAGES - 1);
    const seen = offers();
    const server = cli.run(0, "listen", "1", "turns", "--keep", "--", "echo", "here");
    for (let i = 0; i < 2; i++) {
      const { status } = await cli.run(1, "connect", "0", "turns", "--wait", "--receive").finished;
      expect(status).toBe(0);
    }
    await cli.published(0, 1, "turns");
    server.child.kill("SIGTERM");
    expect((await server.finished).status).toBe(143);
    expect(seen).toEqual([true, false, true, false, true, false]);
  },
  TIMEOUT_MS,
);

async function currentKeys(): Promise<VchanKeys> {
  using platform = cli.host.platform(0);
  using xenstore = await Xenstore.connect(platform);
  const keys = await readKeys(xenstore, PLACE);
  if (keys === undefined) throw new Error("there are no keys");
  return keys;
}

test(
  "a server whose place another one took while it had a client leaves it to that one, and ends",
  async () => {
    const first = cli.run(0, "listen", "1", "turns", "--keep", "--", "cat");
    await cli.published(0, 1, "turns");
    const client = cli.run(1, "connect", "0", "turns");
    await client.feed("one", true);
    await client.received(3);
    const keysBefore = await currentKeys();
    const second = cli.run(0, "listen", "1", "turns", "--keep", "--", "echo", "here");
    while (areKeys(await currentKeys(), keysBefore)) await Bun.sleep(10);
    await client.feed("");
    expect((await client.finished).status).toBe(0);
    const { status, stderr } = await first.finished;
    expect([status, stderr]).toEqual([
      3,
      expect.stringContaining(`another server has put its keys at ${PATH}`),
    ]);
    const next = await cli.run(1, "connect", "0", "turns", "--receive").finished;
    expect([next.status, next.stdout.toString()]).toEqual([0, "here\n"]);
    second.child.kill("SIGTERM");
    expect((await second.finished).status).toBe(143);
  },
  TIMEOUT_MS,
);

/** A server whose last client has gone, and with which it has not ended yet. */
function betweenClients(server: VchanServer): VchanServer {
  server.endpoint.page.bytes[VCHAN_CLI_LIVE] = 0;
  return server;
}

async function withServers(
  body: (
    open: () => VchanServer,
    publish: (keys: VchanKeys, before?: VchanKeys) => Promise<unknown>,
  ) => Promise<void>,
): Promise<void> {
  using platform = cli.host.platform(0);
  using xenstore = await Xenstore.connect(platform);
  await body(
    () => openVchanServer(platform, { peer: GUEST, orders: { left: 12, right: 12 } }),
    (keys, before) => publishKeys(xenstore, PLACE, keys, before),
  );
}

function connect(): Bun.Subprocess<Blob | Buffer, "pipe", "pipe"> {
  return Bun.spawn(cli.argv("connect", "0", "turns"), {
    env: cli.env(1),
    stdio: [Buffer.from("hello"), "pipe", "pipe"],
  });
}

test(
  "a client that comes when the last one has just gone waits for the next rings, also without --wait",
  async () => {
    await withServers(async (open, publish) => {
      const before = betweenClients(open());
      await publish(before);
      const client = connect();
      expect(await readUntil(client.stderr, "\n")).toBe(TURN);
      const next = open();
      expect(await publish(next, before)).toMatchObject({ replaced: false });
      before.endpoint.close();
      const bytes = Buffer.alloc(5);
      let count = 0;
      while (count < bytes.length) {
        count += next.endpoint.read(bytes.subarray(count));
        await Bun.sleep(5);
      }
      expect(bytes.toString()).toBe("hello");
      next.endpoint.endStream();
      expect(await client.exited).toBe(0);
      next.endpoint.close();
    });
  },
  TIMEOUT_MS,
);

test(
  "it is told that the server is busy when that takes long",
  async () => {
    await withServers(async (open, publish) => {
      const server = betweenClients(open());
      await publish(server);
      const client = connect();
      expect(await client.stderr.text()).toBe(
        `${TURN}xentool: the vchan server in domain 0 is busy: it has not ended with its last client yet; ` +
          "--wait waits for a turn\n",
      );
      expect(await client.exited).toBe(3);
      server.endpoint.close();
    });
  },
  TIMEOUT_MS,
);
