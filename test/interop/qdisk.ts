// Debian's QEMU, unmodified, as the qdisk backend of domain 1 on a simulated host, and `xentool blkfront nbd`.
import { expect } from "bun:test";
import { existsSync } from "node:fs";
import { finished, readUntil, type Child, type Finished } from "../support/process.ts";
import type { ProgramHost } from "./program-host.ts";

/** /usr/bin/qemu-system-i386 is a script that looks for Xen's own files. */
const QEMU = "/usr/libexec/xen-qemu-system-i386";
const MACHINE = "-M xenpv -xen-attach -xen-domid 1 -nodefaults -nographic -monitor none".split(" ");

export interface Qemu {
  readonly child: Child;
  readonly ended: Promise<Finished>;
}

/** A disk as an NBD server, made by a program of its own. */
export interface ExportedDisk {
  readonly uri: string;
  readonly socket: string;
  readonly front: Child;
}

export function startQemu(host: ProgramHost, ...devices: string[]): Qemu {
  const child = host.program(0, QEMU, ...MACHINE, ...devices);
  return { child, ended: finished(child) };
}

/** Connects domain 1 to its disk, which `qemu` serves. */
export async function exportDisk(host: ProgramHost, qemu: Qemu, vdev: string): Promise<ExportedDisk> {
  const socket = host.file(`${vdev}.sock`);
  const front = host.xentool(1, "-v", "blkfront", "nbd", "--vdev", vdev, "--socket", socket);
  const died = qemu.ended.then(({ status, stderr }) => {
    throw new Error(`QEMU ended with status ${status}: ${stderr}`);
  });
  await Promise.race([readUntil(front.stderr, `serving ${vdev}`), died]);
  return { uri: `nbd+unix:///?socket=${socket}`, socket, front };
}

/** Ends frontends, then QEMU, as their users would. */
export async function endDisks(disks: readonly ExportedDisk[], qemu: Qemu): Promise<void> {
  for (const { front } of disks) front.kill("SIGTERM");
  await Promise.all(disks.map(({ front }) => front.exited));
  expect(disks.filter(({ socket }) => existsSync(socket))).toEqual([]);
  qemu.child.kill("SIGTERM");
  expect(await qemu.ended).toMatchObject({ status: 0 });
}
