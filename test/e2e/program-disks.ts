// Disks whose images a program opens for xentool, and guests by hand that use them. At the end nothing is left: no
// process of a program either.
import { expect } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseVdev } from "../../src/protocol/blkif.ts";
import { HandmadeGuest } from "../sim/blk-guest.ts";
import { diskAddress } from "../sim/disk-world.ts";
import { readUntil, run, type Child } from "../support/process.ts";
import { detach, DiskHost } from "./disk-host.ts";
import { runXentool, spawnXentool } from "./executable.ts";

export interface ProgramDisk {
  readonly server: Child;
  readonly guest: HandmadeGuest;
  /** Detaches the disk as SIGTERM does, and returns the server's exit status. */
  end(): Promise<number>;
}

export class ProgramDisks {
  readonly #children: Child[] = [];

  private constructor(readonly disks: DiskHost) {}

  static async start(images: Readonly<Record<string, Uint8Array>> = {}): Promise<ProgramDisks> {
    return new ProgramDisks(await DiskHost.start(images));
  }

  path(name: string): string {
    return join(this.disks.dir, name);
  }

  /** `blkback serve` for domain 1; resolves once it offers the disk. */
  async serve(image: string, vdev: string, ...options: string[]): Promise<Child> {
    const server = this.spawn(["-v", "blkback", "serve", image, "--domid", "1", "--vdev", vdev, ...options]);
    await readUntil(server.stderr, "offering");
    return server;
  }

  /** The same, with a guest that is connected. */
  async connect(image: string, vdev: string, ...options: string[]): Promise<ProgramDisk> {
    const server = await this.serve(image, vdev, ...options);
    const guest = await this.guest(vdev);
    return { server, guest, end: () => detach(server, guest) };
  }

  async guest(vdev: string, domid = 1): Promise<HandmadeGuest> {
    const guest = await HandmadeGuest.start(this.disks.host, diskAddress(domid, parseVdev(vdev)));
    await guest.connect();
    return guest;
  }

  spawn(args: readonly string[], env: Readonly<Record<string, string>> = {}): Child {
    const child = spawnXentool(args, { env: { ...this.disks.env, ...env } });
    this.#children.push(child);
    return child;
  }

  run(args: readonly string[], env: Readonly<Record<string, string>> = {}): ReturnType<typeof runXentool> {
    return runXentool(args, { env: { ...this.disks.env, ...env } });
  }

  async close(): Promise<void> {
    for (const child of this.#children) {
      child.kill("SIGKILL");
      await child.exited;
    }
    await untilNone(this.disks.dir);
    await this.disks.close();
  }
}

/** Processes of programs that have `text`, e.g. an image's path, on their command lines; not those of xentool. */
export function programsWith(text: string, isWanted = (_command: string) => true): number[] {
  return readdirSync("/proc")
    .filter((name) => /^[0-9]+$/.test(name))
    .filter((pid) => {
      try {
        const words = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
        const command = words[0] ?? "";
        const isOurs = !/xentool|bun/.test(command) && words.some((word) => word.includes(text));
        return isOurs && isWanted(command);
      } catch {
        return false; // it has ended
      }
    })
    .map(Number);
}

/** The program itself, not the shell that keeps it. */
export function programItself(name: string, text: string): number {
  const found = programsWith(text, (command) => command.endsWith(name));
  expect(found).toHaveLength(1);
  return Number(found[0]);
}

/** Waits until there is one. */
export async function untilProgram(name: string, text: string): Promise<number> {
  for (;;) {
    const [found] = programsWith(text, (command) => command.endsWith(name));
    if (found !== undefined) return found;
    await Bun.sleep(10);
  }
}

/** Waits until no such process is left. */
export async function untilNone(text: string): Promise<void> {
  while (programsWith(text).length > 0) await Bun.sleep(10);
}

/** Runs a judge that has to succeed; what it prints. */
export async function judge(...argv: readonly string[]): Promise<string> {
  const { status, stdout, stderr } = await run(argv);
  expect({ argv, status, stderr }).toEqual({ argv, status: 0, stderr: "" });
  return stdout;
}
