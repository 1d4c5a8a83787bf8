// What the relay to an nbds server keeps of a connection that is over: nothing, even if the server takes nothing more,
// or answers late. Otherwise a server that hangs would cost its disk's process descriptors, one after the other.
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { TlsRelay } from "../../src/block/targets/nbd/tls-relay.ts";
import { makeCertificates } from "../support/certificates.ts";
import { openDescriptors } from "../support/descriptors.ts";
import { nbdkit, type NbdServer } from "../support/nbd-servers.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

/** More than all sockets on the way have room for. */
const MUCH_BYTES = 8 << 20;

const PATIENCE_MS = 60_000;

let dir: string;
let server: NbdServer;
let relay: TlsRelay;
/** Sockets that are open when there is no connection. */
let before: number;

beforeAll(async () => {
  dir = temporaryDirectory();
  await makeCertificates(dir, "storage");
});
afterAll(() => removeDirectory(dir));

beforeEach(async () => {
  const disk = (it: string): readonly string[] => ["file", join(it, "disk.img")];
  server = await nbdkit([], disk, "--tls=require", `--tls-certificates=${dir}`);
  const tls = { hostname: "storage", certificates: dir };
  const to = { address: join(server.dir, "nbd.sock"), port: undefined, exportName: "", tls };
  relay = await TlsRelay.listen(join(dir, "relay.sock"), to);
  before = sockets();
});
afterEach(async () => {
  relay.close();
  await server[Symbol.asyncDispose]();
});

function sockets(): number {
  return openDescriptors().filter((it) => it.startsWith("socket:")).length;
}

function signal(name: NodeJS.Signals): void {
  process.kill(Number(readFileSync(join(server.dir, "pid"), "utf8")), name);
}

async function connected(): Promise<Socket> {
  const socket = connect(join(dir, "relay.sock"));
  await once(socket, "connect");
  return socket;
}

async function untilSockets(isRight: (count: number) => boolean): Promise<void> {
  while (!isRight(sockets() - before)) await Bun.sleep(5);
}

test(
  "a connection is over while the server takes nothing",
  async () => {
    const socket = await connected();
    await once(socket, "data");
    // Our end, the relay's and that to the server.
    await untilSockets((count) => count === 3);
    signal("SIGSTOP");
    socket.write(new Uint8Array(MUCH_BYTES));
    // The relay has taken what it takes.
    let taken = -1;
    for (let now = 0; now !== taken || now === 0; await Bun.sleep(100))
      [taken, now] = [now, socket.bytesWritten];
    socket.destroy();
    await untilSockets((count) => count === 0);
  },
  PATIENCE_MS,
);

test(
  "a connection is over before the server answers",
  async () => {
    signal("SIGSTOP");
    const socket = await connected();
    await untilSockets((count) => count === 3);
    socket.destroy();
    await untilSockets((count) => count === 2);
    signal("SIGCONT");
    await untilSockets((count) => count === 0);
    expect(sockets()).toBe(before);
  },
  PATIENCE_MS,
);

test(
  "more connections than any disk needs are closed, and make room again",
  async () => {
    signal("SIGSTOP");
    const clients: Socket[] = [];
    let closed = 0;
    for (let count = 0; count < 100; count++) {
      const socket = await connected();
      socket.on("close", () => closed++);
      clients.push(socket);
    }
    while (closed < 36) await Bun.sleep(5);
    await untilSockets((count) => count === 3 * 64);
    expect(closed).toBe(36);
    for (const socket of clients) socket.destroy();
    signal("SIGCONT");
    await untilSockets((count) => count === 0);
    const last = await connected();
    const [greeting] = (await once(last, "data")) as [Buffer];
    expect(greeting.length).toBe(18);
    last.destroy();
    await untilSockets((count) => count === 0);
  },
  PATIENCE_MS,
);
