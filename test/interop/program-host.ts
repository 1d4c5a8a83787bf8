// A simulated host on which other people's programs run, each a process of its own. Closing it asserts that nothing is
// left: no grant, no port, no process.
import { expect } from "bun:test";
import { join } from "node:path";
import { SimHost } from "../../src/sim/host.ts";
import { installLibraries, programEnvironment } from "../../src/sim/programs.ts";
import { executable } from "../e2e/executable.ts";
import { finished, start, type Child } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const root = join(import.meta.dir, "../..");

export class ProgramHost {
  readonly dir = temporaryDirectory();
  readonly host: SimHost;
  readonly #children: Bun.Subprocess[] = [];

  private constructor(host: SimHost) {
    this.host = host;
  }

  static async start(): Promise<ProgramHost> {
    const host = await SimHost.start({ domains: 2, limits: { sharePages: 4096 } });
    installLibraries(host.dir);
    return new ProgramHost(host);
  }

  file(name: string): string {
    return join(this.dir, name);
  }

  environment(domid: number): Record<string, string> {
    return { PATH: process.env["PATH"] ?? "", ...programEnvironment(this.host.dir, domid) };
  }

  /** A program in a domain, with no input. */
  program(domid: number, ...argv: string[]): Child {
    return this.started(start(argv, { cwd: this.dir, env: this.environment(domid) }));
  }

  xentool(domid: number, ...args: string[]): Child {
    return this.program(domid, executable, ...args);
  }

  /** Kills the program when the host is closed, if it has not ended by then. */
  started<T extends Bun.Subprocess>(child: T): T {
    this.#children.push(child);
    return child;
  }

  async close(): Promise<void> {
    for (const child of this.#children) child.kill("SIGKILL");
    await Promise.all(this.#children.map((child) => child.exited));
    const left = await this.host.settle();
    await this.host.stop();
    removeDirectory(this.dir);
    expect(left).toEqual([]);
  }
}

/** Runs a program that has to succeed, such as a judge that has to be content; returns what it prints. */
export async function succeeds(child: Child): Promise<string> {
  const { status, stdout, stderr } = await finished(child);
  expect(status, stdout + stderr).toBe(0);
  return stdout;
}

/** Compiles test/xen/programs/vchan-peer.c, the other end of a vchan on Debian's libxenvchan. */
export async function compileVchanPeer(path: string): Promise<void> {
  const source = join(root, "test/xen/programs/vchan-peer.c");
  const libraries = ["xenvchan", "xengnttab", "xenevtchn", "xenstore", "xentoollog"].map(
    (name) => `-l${name}`,
  );
  await succeeds(start(["cc", "-std=c11", "-D_GNU_SOURCE", "-o", path, source, ...libraries]));
}
