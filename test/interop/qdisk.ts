// Debian's QEMU, unmodified, as the qdisk backend of domain 1 on a simulated host, and `xentool blkfront nbd` as
// programs of their own. Closing it asserts that nothing is left: not a grant, port, node, socket or process.
import { expect } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { SimHost } from "../../src/sim/host.ts";
import { installLibraries, programEnvironment } from "../../src/sim/programs.ts";
import { spawnXentool } from "../e2e/executable.ts";
import { finished, readUntil, start, type Child, type Finished } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

/** /usr/bin/qemu-system-i386 is a script that looks for Xen's own files. */
const QEMU = "/usr/libexec/xen-qemu-system-i386";
const MACHINE = [
  "-M",
  "xenpv",
  "-xen-attach",
  "-xen-domid",
  "1",
  "-nodefaults",
  "-nographic",
  "-monitor",
  "none",
];

export interface Qemu {
  readonly child: Child;
  readonly ended: Promise<Finished>;
}

/** A disk as an NBD server, made by a program of its own. */
export interface ExportedDisk {
  readonly uri: string;
  readonly front: Child;
}

export class QemuHost {
  readonly dir = temporaryDirectory();
  readonly host: SimHost;
  readonly #children: Child[] = [];

  private constructor(host: SimHost) {
    this.host = host;
  }

  static async start(): Promise<QemuHost> {
    const host = await SimHost.start({ domains: 2, limits: { sharePages: 4096 } });
    installLibraries(host.dir);
    return new QemuHost(host);
  }

  file(name: string): string {
    return join(this.dir, name);
  }

  qemu(...devices: string[]): Qemu {
    const env = { PATH: process.env["PATH"] ?? "", ...programEnvironment(this.host.dir, 0) };
    const child = this.started(start([QEMU, ...MACHINE, ...devices], { env }));
    return { child, ended: finished(child) };
  }

  xentool(domid: number, ...args: string[]): Child {
    const env = { XENTOOL_SIM: this.host.dir, XENTOOL_DOMID: String(domid) };
    return this.started(spawnXentool(args, { env }));
  }

  /** A program that must have ended when the host is closed; it is killed then. */
  started(child: Child): Child {
    this.#children.push(child);
    return child;
  }

  /** Connects domain 1 to its disk, which `qemu` serves. */
  async export(qemu: Qemu, vdev: string): Promise<ExportedDisk> {
    const socket = this.file(`${vdev}.sock`);
    const front = this.xentool(1, "-v", "blkfront", "nbd", "--vdev", vdev, "--socket", socket);
    const died = qemu.ended.then(({ status, stderr }) => {
      throw new Error(`QEMU ended with status ${status}: ${stderr}`);
    });
    await Promise.race([readUntil(front.stderr, `serving ${vdev}`), died]);
    return { uri: `nbd+unix:///?socket=${socket}`, front };
  }

  /** Ends frontends, then QEMU, as their users would. */
  async end(disks: readonly ExportedDisk[], qemu: Qemu): Promise<void> {
    for (const { front } of disks) front.kill("SIGTERM");
    await Promise.all(disks.map(({ front }) => front.exited));
    expect(readdirSync(this.dir).filter((name) => name.endsWith(".sock"))).toEqual([]);
    qemu.child.kill("SIGTERM");
    expect(await qemu.ended).toMatchObject({ status: 0 });
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
