// The jail of `blkback serve`, probed from inside by a library that is loaded into the executable: what every thread
// has given up, what it gets when it asks, and what becomes of a process that tries to break out.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { constants } from "node:os";
import { DEFAULT_KIND } from "../../src/blkback/address.ts";
import { toDomid } from "../../src/core/types.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { testProgram } from "../sim/xsring-harness.ts";
import { run, readUntil } from "../support/process.ts";
import { DiskHost } from "./disk-host.ts";
import { runXentool, spawnXentool } from "./executable.ts";

const probes = `${testProgram("jail_probe")}.so`;
const pokeThreads = testProgram("poke_threads");
const { EACCES, EPERM } = constants.errno;
const XVDB = 51728;
const AT = { backend: toDomid(0), frontend: toDomid(1), kind: DEFAULT_KIND, devid: XVDB };
const LOG = "error: thread";

let disks: DiskHost;
const children: ReturnType<typeof spawnXentool>[] = [];

beforeEach(async () => {
  disks = await DiskHost.start();
});

afterEach(async () => {
  for (const child of children.splice(0)) {
    child.kill("SIGKILL");
    await child.exited;
  }
  await disks.close();
});

const answers = (): string => join(disks.dir, "answers");

async function serve(...options: string[]): Promise<ReturnType<typeof spawnXentool>> {
  const args = ["blkback", "serve", join(disks.dir, "a.img"), "--domid", "1", "--vdev", "xvdb", ...options];
  const env = { ...disks.env, LD_PRELOAD: probes, JAIL_PROBE: answers() };
  const server = spawnXentool(args, { env });
  children.push(server);
  await readUntil(server.stderr, "offering");
  return server;
}

async function connectedGuest(): Promise<HandmadeGuest> {
  const guest = await HandmadeGuest.start(disks.host, AT);
  await guest.connect();
  return guest;
}

/** What one thread was answered, by question. */
interface Answers {
  readonly name: string;
  readonly errnos: ReadonlyMap<string, number>;
}

/** Sends a signal to every thread of `pid`, or to those called `name`; returns how many there were. */
async function poke(pid: number, signal: keyof typeof constants.signals, ...name: string[]): Promise<number> {
  const poked = await run([pokeThreads, `${pid}`, `${constants.signals[signal]}`, ...name]);
  return Number(poked.stdout);
}

/** The first `count` lines of what the library has to say, once they are there. */
async function lines(pid: number, count: number): Promise<string[]> {
  for (;;) {
    const said = readFileSync(answers(), "utf8").split("\n").slice(0, -1);
    if (said.length >= count) return said;
    expect(existsSync(`/proc/${pid}/task`)).toBe(true);
    await Bun.sleep(5);
  }
}

/** Has every thread of `pid` ask its questions, and waits for the answers. */
async function probe(pid: number): Promise<Answers[]> {
  await poke(pid, "SIGUSR1", "xentool");
  await lines(pid, 1);
  const count = await poke(pid, "SIGTRAP");
  return (await lines(pid, 1 + count)).slice(1).map((line) => {
    const [, name = "", ...pairs] = line.split("\t");
    const errnos = pairs
      .map((pair) => pair.split("="))
      .map(([question = "", errno]) => [question, Number(errno)] as const);
    return { name, errnos: new Map(errnos) };
  });
}

function statuses(pid: number): string[] {
  return readdirSync(`/proc/${pid}/task`).map((thread) =>
    readFileSync(`/proc/${pid}/task/${thread}/status`, "utf8"),
  );
}

test("every thread has no capability, gains no privilege, and has its calls filtered", async () => {
  const server = await serve("--jail", "strict");
  const guest = await connectedGuest();
  const seen = statuses(server.pid);
  expect(seen.length).toBeGreaterThan(3);
  for (const status of seen) {
    for (const kind of ["CapInh", "CapPrm", "CapEff", "CapAmb"])
      expect(status).toMatch(new RegExp(`^${kind}:\\t0+$`, "m"));
    expect(status).toMatch(/^NoNewPrivs:\t1$/m);
    expect(status).toMatch(/^Seccomp:\t2$/m);
  }
  // The plane's threads have a filter of their own besides.
  expect(
    seen.filter((status) => /^Name:\tWorker$/m.test(status) && /^Seccomp_filters:\t2$/m.test(status)),
  ).toHaveLength(1);
  guest.close();
});

/** Of no thread. */
const REFUSED = [
  "open",
  "create",
  "socket",
  "netlink",
  "bind",
  "listen",
  "kill",
  "fork",
  "code",
  "ioctl",
  "dumpable",
];

test("every thread asks for what it should not get, and gets nothing", async () => {
  const server = await serve();
  const guest = await connectedGuest();
  const threads = await probe(server.pid);
  for (const { name, errnos } of threads)
    for (const question of REFUSED)
      expect([name, question, [EACCES, EPERM].includes(errnos.get(question) ?? 0)]).toEqual([
        name,
        question,
        true,
      ]);
  const planes = threads.filter(({ name }) => name === "Worker");
  expect(planes).toHaveLength(1);
  // The control side opens these for a plane to be; on real Xen it makes no socket at all.
  for (const question of ["io_uring_setup", "connect", "open"])
    expect(planes[0]?.errnos.get(question)).toBe(EPERM);
  expect(await guest.read(0)).toEqual(new Uint8Array(4096));
  guest.close();
});

test("from inside, a guest connects again, the disk grows, and its limits change", async () => {
  await serve("--jail", "strict");
  const at = ["--domid", "1", "--vdev", "xvdb"];
  const guest = { env: { ...disks.env, XENTOOL_DOMID: "1" } };
  for (let round = 0; round < 2; round++) {
    const bench = await runXentool(
      ["blkfront", "bench", "--vdev", "xvdb", "--runtime", "0.1", "--json"],
      guest,
    );
    expect([bench.status, bench.stderr]).toEqual([0, ""]);
    if (round === 1) break;
    truncateSync(join(disks.dir, "a.img"), 2 << 20);
    const resize = await runXentool(["blkback", "resize", ...at], { env: disks.env });
    expect(resize.stdout).toContain("4096");
    expect((await runXentool(["blkback", "limit", ...at, "--iops", "1000"], { env: disks.env })).status).toBe(
      0,
    );
  }
});

test.each(["Worker", "xentool"])(
  "breaking out of thread %s ends that process alone, with a word in the log",
  async (name) => {
    const server = await serve();
    const guest = await connectedGuest();
    expect(await poke(server.pid, "SIGUSR2", name)).toBe(1);
    expect(await readUntil(server.stderr, LOG)).toContain(`"${name}" asked for execve`);
    await server.exited;
    expect(server.signalCode).toBe("SIGSYS");
    await serve();
    expect(await guest.read(0)).toEqual(new Uint8Array(4096));
    guest.close();
  },
);

test("--jail off gives up nothing", async () => {
  const server = await serve("--jail", "off");
  for (const status of statuses(server.pid)) expect(status).toMatch(/^Seccomp:\t0$/m);
});
