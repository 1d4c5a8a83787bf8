// The jail of what serves no disk, `vchan listen` and `connect` and `blkfront nbd`, probed from inside: what every
// thread has given up, and that all that they do still works.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { connect, createServer, type Server } from "node:net";
import { join } from "node:path";
import { expectAllJailed, expectAllRefused, JailProbe } from "../support/jail-probe.ts";
import { readUntil, start as startProgram } from "../support/process.ts";
import { DiskHost } from "./disk-host.ts";
import { executable, runShell, runXentool, spawnXentool } from "./executable.ts";
import { OwnEtc } from "./own-etc.ts";

const STRICT = ["--jail", "strict"];

let disks: DiskHost;
let probe: JailProbe;
const children: ReturnType<typeof spawnXentool>[] = [];
const servers: Server[] = [];

beforeEach(async () => {
  disks = await DiskHost.start();
  probe = new JailProbe(join(disks.dir, "answers"));
});

afterEach(async () => {
  for (const server of servers.splice(0)) server.close();
  for (const child of children.splice(0).reverse()) {
    child.kill("SIGTERM");
    await child.exited;
  }
  await disks.close();
});

/** Starts xentool in domain `domid`, and waits until it says `word`. */
async function start(domid: number, word: string, args: readonly string[]): Promise<Child> {
  const env = { ...disks.env, ...probe.env, XENTOOL_DOMID: `${domid}` };
  const child = spawnXentool(args, { env });
  children.push(child);
  await readUntil(child.stderr, word);
  return child;
}
type Child = ReturnType<typeof spawnXentool>;

function echoAt(at: string | number): Promise<Server> {
  const server = createServer((socket) => void socket.pipe(socket));
  servers.push(server);
  return new Promise((resolve) =>
    typeof at === "string"
      ? server.listen(at, () => resolve(server))
      : server.listen(at, "127.0.0.1", () => resolve(server)),
  );
}

/** Says `text` at a unix socket; returns what comes back until it closes, or as much as was said. */
function converse(path: string, text: string, bytes: number): Promise<string> {
  return new Promise((resolve, reject) => {
    let got = "";
    const socket = connect(path, () => void socket.write(text));
    socket.on("error", reject);
    socket.on("data", (data) => {
      got += data.toString("latin1");
      if (got.length < bytes) return;
      socket.destroy();
      resolve(got);
    });
  });
}

async function expectInJail(...jailed: readonly Child[]): Promise<void> {
  for (const { pid } of jailed) {
    expectAllJailed(pid);
    expectAllRefused(await probe.ask(pid));
  }
}

test("vchan between two unix sockets: one peer after another, and the socket is removed", async () => {
  const [service, socket] = [join(disks.dir, "service"), join(disks.dir, "socket")];
  await echoAt(service);
  const listen = ["vchan", "listen", "1", "echo", "--keep", "--unix", service, ...STRICT];
  const server = await start(0, "waiting for", listen);
  const dial = ["vchan", "connect", "0", "echo", "--wait", "--keep", "--unix", socket, ...STRICT];
  const client = await start(1, "waiting for", dial);
  for (const round of ["first", "second"]) expect(await converse(socket, round, round.length)).toBe(round);
  await expectInJail(server, client);
  client.kill("SIGTERM");
  expect(await client.exited).toBe(143);
  expect(existsSync(socket)).toBe(false);
});

test("vchan to a TCP service by its name, and from standard input and output", async () => {
  const { port } = (await echoAt(0)).address() as { port: number };
  const listen = ["vchan", "listen", "1", "echo", "--keep", "--tcp", `localhost:${port}`, ...STRICT];
  expectAllJailed((await start(0, "waiting for", listen)).pid);
  for (const said of ["first", "second"]) {
    const relay = `echo -n ${said} | $xentool vchan connect 0 echo --wait --jail strict | cat`;
    const heard = await runShell(relay, { ...disks.env, XENTOOL_DOMID: "1" });
    expect([heard.status, heard.stdout]).toEqual([0, said]);
  }
});

test("vchan to a TCP service whose name is in a file that is replaced", async () => {
  const { port } = (await echoAt(0)).address() as { port: number };
  const etc = new OwnEtc(join(disks.dir, "etc"), { service: ["127.0.0.1"] });
  const listen = ["vchan", "listen", "1", "echo", "--keep", "--tcp", `service:${port}`, ...STRICT];
  const env = { ...disks.env, XENTOOL_DOMID: "0", PATH: process.env["PATH"] };
  const server = startProgram(etc.inside([executable, ...listen]), { env });
  children.push(server);
  await readUntil(server.stderr, "waiting for");
  etc.replaceHosts({ service: ["127.0.0.9"] });
  const relay = "echo -n said | $xentool vchan connect 0 echo --wait | cat";
  const heard = await runShell(relay, { ...disks.env, XENTOOL_DOMID: "1" });
  expect([heard.status, heard.stdout]).toEqual([0, "said"]);
  await readUntil(server.stderr, "/etc/hosts has been replaced");
});

test("vchan from a file, watched at a terminal", async () => {
  await start(0, "waiting for", ["vchan", "listen", "1", "files", "--receive"]);
  const [input, status] = [join(disks.dir, "input"), join(disks.dir, "status")];
  writeFileSync(input, "everything");
  const line = `${executable} vchan connect 0 files --send --jail strict <${input} >/dev/null; echo $? >${status}`;
  const env = { ...disks.env, PATH: process.env["PATH"], XENTOOL_DOMID: "1" };
  await using shell = Bun.spawn(["sh", "-c", line], { env, terminal: {} });
  await shell.exited;
  expect(readFileSync(status, "utf8")).toBe("0\n");
});

test("in a jail no command can be started for a vchan", async () => {
  const { status, stderr } = await runXentool(["vchan", "listen", "1", "x", ...STRICT, "--", "date"], disks);
  expect([status, stderr]).toEqual([2, expect.stringContaining("exclude each other")]);
});

test("blkfront nbd: one client after another, and socket and lock are removed", async () => {
  const socket = join(disks.dir, "socket");
  const at = ["--vdev", "xvdb"];
  await start(0, "offering", ["blkback", "serve", join(disks.dir, "a.img"), "--domid", "1", ...at]);
  const front = await start(1, "serving", ["blkfront", "nbd", ...at, "--socket", socket, ...STRICT]);
  for (let round = 0; round < 2; round++) expect(await converse(socket, "", 8)).toStartWith("NBDMAGIC");
  await expectInJail(front);
  front.kill("SIGTERM");
  expect([0, 143]).toContain(await front.exited);
  expect(existsSync(socket)).toBe(false);
});
