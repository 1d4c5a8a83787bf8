// Asks a jailed process from inside what it gets, by a library that is loaded into it (test/preload/jail_probe.c).
import { expect } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { constants } from "node:os";
import { testProgram } from "../sim/xsring-harness.ts";
import { run } from "./process.ts";

const pokeThreads = testProgram("poke_threads");
const { EACCES, EPERM } = constants.errno;

/** What no thread gets. */
const REFUSED = [
  "open",
  "secret",
  "create",
  "socket",
  "netlink",
  "bind",
  "listen",
  "kill",
  "fork",
  "code",
  "ioctl",
  "flock",
  "lock",
  "lockw",
  "ofd-lock",
  "ofd-lockw",
  "lease",
  "owner",
  "dumpable",
];

/** What one thread was answered, by question. */
export interface Answers {
  readonly name: string;
  readonly errnos: ReadonlyMap<string, number>;
}

export class JailProbe {
  /** For a process that is to be probed, with all that it starts. */
  readonly env: Readonly<Record<string, string>>;
  readonly #path: string;

  /** Answers go to the file at `path`. `secret` is a file that is asked for. */
  constructor(path: string, secret = "/etc/shadow") {
    this.#path = path;
    this.env = { LD_PRELOAD: `${testProgram("jail_probe")}.so`, JAIL_PROBE: path, JAIL_PROBE_FILE: secret };
  }

  /** Has every thread of `pid` ask its questions, and waits for the answers. `main` is the name of its main thread. */
  async ask(pid: number, main = "xentool"): Promise<Answers[]> {
    const before = this.#said().length;
    await poke(pid, "SIGUSR1", main);
    await this.#lines(pid, before + 1);
    const count = await poke(pid, "SIGTRAP");
    return (await this.#lines(pid, before + 1 + count)).slice(before + 1).map((line) => {
      const [, name = "", ...pairs] = line.split("\t");
      const errnos = pairs
        .map((pair) => pair.split("="))
        .map(([question = "", errno]) => [question, Number(errno)] as const);
      return { name, errnos: new Map(errnos) };
    });
  }

  #said(): string[] {
    return readFileSync(this.#path, "utf8").split("\n").slice(0, -1);
  }

  /** The first `count` lines of what the library has to say, once they are there. */
  async #lines(pid: number, count: number): Promise<string[]> {
    for (;;) {
      const said = this.#said();
      if (said.length >= count) return said;
      expect(existsSync(`/proc/${pid}/task`)).toBe(true);
      await Bun.sleep(5);
    }
  }
}

/** Sends a signal to every thread of `pid`, or to those called `name`; returns how many there were. */
export async function poke(
  pid: number,
  signal: keyof typeof constants.signals,
  ...name: string[]
): Promise<number> {
  const poked = await run([pokeThreads, `${pid}`, `${constants.signals[signal]}`, ...name]);
  return Number(poked.stdout);
}

/** /proc/PID/status of each thread. */
export function threadsOf(pid: number): string[] {
  return readdirSync(`/proc/${pid}/task`).map((thread) =>
    readFileSync(`/proc/${pid}/task/${thread}/status`, "utf8"),
  );
}

/** Every thread has no capability, gains no privilege, and has its calls filtered; so many are planes of a disk. */
export function expectJailed(pid: number, planes = 1): void {
  const isPlane = (status: string): boolean =>
    /^Name:\tWorker$/m.test(status) && /^Seccomp_filters:\t2$/m.test(status);
  // Threads that they have just started still have their name.
  expect(expectAllJailed(pid).filter(isPlane).length).toBeGreaterThanOrEqual(planes);
}

/** The same without a plane that is in a narrower jail. Returns what /proc says of each thread. */
export function expectAllJailed(pid: number): string[] {
  const seen = threadsOf(pid);
  expect(seen.length).toBeGreaterThan(3);
  for (const status of seen) {
    for (const kind of ["CapInh", "CapPrm", "CapEff", "CapAmb"])
      expect(status).toMatch(new RegExp(`^${kind}:\\t0+$`, "m"));
    expect(status).toMatch(/^NoNewPrivs:\t1$/m);
    expect(status).toMatch(/^Seccomp:\t2$/m);
  }
  return seen;
}

/** No thread gets what it should not. */
export function expectAllRefused(threads: readonly Answers[]): void {
  for (const { name, errnos } of threads)
    for (const question of REFUSED)
      expect([name, question, [EACCES, EPERM].includes(errnos.get(question) ?? 0)]).toEqual([
        name,
        question,
        true,
      ]);
}

/** No thread gets what it should not, and the planes of a disk still less. */
export function expectRefused(threads: readonly Answers[], count = 1): void {
  expectAllRefused(threads);
  const planes = threads.filter(({ name }) => name === "Worker");
  expect(planes).toHaveLength(count);
  // The control side opens these for a plane to be; on real Xen it makes no socket at all.
  for (const question of ["io_uring_setup", "connect", "open"])
    for (const { errnos } of planes) expect(errnos.get(question)).toBe(EPERM);
}
