// serve and watch as services: what a service manager hears on its socket, and what the journal sees on stderr.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { closeSync, fstatSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { SimHost } from "../../src/sim/host.ts";
import { executable } from "./executable.ts";
import { readUntil } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const SERVE = ["blkback", "serve", "a.img", "--domid", "1", "--vdev", "xvdb"];
const WATCH = ["blkback", "watch", "--kind", "qdisk", "--any-script"];

/** Prints the messages that a socket gets, a line each: Bun has no unix datagrams, and perl-base is on every Debian. */
const LISTENER = `
use Socket;
$| = 1;
my $at = $ARGV[0] =~ s/^@/\\0/r;
socket(my $s, AF_UNIX, SOCK_DGRAM, 0) or die "$!";
bind($s, pack_sockaddr_un($at)) or die "$!";
print "listening\\n";
while (defined recv($s, my $text, 4096, 0)) { print $text =~ s/\\n/ /gr, "\\n" }
`;

let dir: string;
let host: SimHost;
let started: Bun.Subprocess[];

beforeEach(async () => {
  started = [];
  dir = temporaryDirectory();
  writeFileSync(join(dir, "a.img"), new Uint8Array(1 << 20));
  host = await SimHost.start();
});
afterEach(async () => {
  for (const child of started) child.kill("SIGKILL");
  await Promise.all(started.map((child) => child.exited));
  const left = await host.settle();
  await host.stop();
  removeDirectory(dir);
  expect(left).toEqual([]);
});

async function listen(address: string) {
  const child = Bun.spawn(["perl", "-e", LISTENER, address], { stdin: "ignore", stdout: "pipe" });
  started.push(child);
  await readUntil(child.stdout, "listening");
  return child.stdout;
}

function start(args: readonly string[], env: Readonly<Record<string, string>>, stderr: "ignore" | number) {
  const child = Bun.spawn([executable, ...args], {
    cwd: dir,
    env: { PATH: String(process.env["PATH"]), XENTOOL_SIM: host.dir, ...env },
    stdin: "ignore",
    stdout: "ignore",
    stderr,
  });
  started.push(child);
  return child;
}

test.each([
  [SERVE, "READY=1 STATUS=xvdb of domain 1: waiting for the guest", (at: string) => `${at}/notify`],
  [WATCH, "READY=1 STATUS=serving 0 disks", (at: string) => `@${at}`],
])("%j says when it is ready, that it lives, and that it stops", async (args, ready, address) => {
  const heard = await listen(address(dir));
  const env = { NOTIFY_SOCKET: address(dir), WATCHDOG_USEC: "600000" };
  const child = start(args, env, "ignore");
  expect(await readUntil(heard, ready)).not.toContain("STOPPING");
  await readUntil(heard, "WATCHDOG=1");
  await readUntil(heard, "WATCHDOG=1");
  child.kill("SIGTERM");
  await readUntil(heard, "STOPPING=1");
  expect(await child.exited).toBe(143);
});

test("the signal that asks watch for a handover is nothing to serve", async () => {
  const heard = await listen(join(dir, "notify"));
  const env = { NOTIFY_SOCKET: join(dir, "notify"), WATCHDOG_USEC: "600000" };
  const child = start(SERVE, env, "ignore");
  await readUntil(heard, "READY=1");
  child.kill("SIGUSR2");
  await readUntil(heard, "WATCHDOG=1");
  await readUntil(heard, "WATCHDOG=1");
  child.kill("SIGTERM");
  expect(await child.exited).toBe(143);
});

test("the plane of a disk that its guest does not use says that it lives", async () => {
  const heard = await listen(join(dir, "notify"));
  start(SERVE, { NOTIFY_SOCKET: join(dir, "notify"), WATCHDOG_USEC: "600000" }, "ignore");
  await readUntil(heard, "READY=1");
  start(
    ["blkfront", "nbd", "--vdev", "xvdb", "--socket", join(dir, "nbd")],
    { XENTOOL_DOMID: "1" },
    "ignore",
  );
  await readUntil(heard, "STATUS=xvdb of domain 1: the guest is connected");
  for (let beats = 0; beats < 3; beats++) await readUntil(heard, "the guest is connected WATCHDOG=1");
});

test("the watchdog of another process is not fed, and --run's command is no service of the manager's", async () => {
  const heard = await listen(join(dir, "notify"));
  const env = { NOTIFY_SOCKET: join(dir, "notify"), WATCHDOG_USEC: "30000", WATCHDOG_PID: "1" };
  const child = start([...SERVE, "--run", "env >env.txt"], env, "ignore");
  expect(await child.exited).toBe(0);
  expect(await readUntil(heard, "READY=1")).not.toContain("WATCHDOG=1");
  expect(readFileSync(join(dir, "env.txt"), "utf8")).not.toMatch(/NOTIFY_SOCKET|WATCHDOG/);
});

test("without a listener the disk is served all the same", async () => {
  const child = start([...SERVE, "--run", "true"], { NOTIFY_SOCKET: join(dir, "nobody") }, "ignore");
  expect(await child.exited).toBe(0);
});

test.each([
  ["where stderr is the journal", 0, /^<6>xentool: (blkback: )?xvdb of domain 1: /m, /^<3>xentool: /m],
  ["nowhere else", 1, /^xentool: (blkback: )?xvdb of domain 1: /m, /^xentool: /m],
])("lines have a priority %s", async (_, away, line, failure) => {
  const log = openSync(join(dir, "log"), "w");
  try {
    const { dev, ino } = fstatSync(log);
    const env = { JOURNAL_STREAM: `${dev}:${ino + away}` };
    await start(["-v", ...SERVE, "--run", "true"], env, log).exited;
    await start(["-v", "blkback", "serve", "none.img", "--domid", "1", "--vdev", "xvdb"], env, log).exited;
  } finally {
    closeSync(log);
  }
  const text = readFileSync(join(dir, "log"), "utf8");
  expect(text).toMatch(line);
  expect(text).toMatch(failure);
  expect(text.includes("<")).toBe(away === 0);
});
