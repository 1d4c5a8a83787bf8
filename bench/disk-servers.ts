// The backends that are measured beside each other, as processes: `blkback serve`, and Debian's QEMU as qdisk, for a
// raw image with each I/O engine that its build has. All serve domain 1, each a disk of its own.
import { spawnSync } from "node:child_process";
import { readUntil } from "../test/support/process.ts";
import { programEnvironment } from "../src/sim/programs.ts";
import { familySeconds, measureRing, XENTOOL, type Load } from "./measure.ts";
import type { Turn } from "./side-by-side.ts";

/** Another build can be measured: Debian 12's has only threads. */
const QEMU = process.env["QEMU"] ?? "/usr/libexec/xen-qemu-system-i386";
const ENGINES = ["threads", "io_uring", "native"] as const;
export type QemuEngine = (typeof ENGINES)[number];

export interface DiskServer {
  readonly name: string;
  readonly vdev: string;
  readonly process: Bun.Subprocess;
}

export interface Ground {
  /** Directory of the simulated host. */
  readonly host: string;
  /** Set before the command of each server. */
  readonly prefix: readonly string[];
}

export interface RawGround extends Ground {
  readonly image: string;
  readonly direct: boolean;
}

function blockdev(image: string, direct: boolean, engine: QemuEngine): string[] {
  const cache = `cache.direct=${direct ? "on" : "off"}`;
  const file = `driver=file,filename=${image},node-name=file,aio=${engine},${cache},locking=off`;
  return ["-blockdev", file, "-blockdev", "driver=raw,file=file,node-name=disk"];
}

/** The engines with which this QEMU can open the image. Native needs direct I/O. */
export function qemuEngines(image: string, direct: boolean): QemuEngine[] {
  return ENGINES.filter((engine) => {
    const monitor = "-M none -accel qtest -nodefaults -display none -monitor stdio".split(" ");
    const tried = spawnSync(QEMU, [...monitor, ...blockdev(image, direct, engine)], { input: "quit\n" });
    if (tried.error !== undefined) throw new Error(`cannot run QEMU: ${tried.error.message}`);
    return tried.status === 0;
  });
}

/** The raw image, which the other servers have, too. */
export function startXentool({ image, direct, ...ground }: RawGround, vdev: string): Promise<DiskServer> {
  return startXentoolOf(ground, vdev, [image, "--mode", "w!", ...(direct ? ["--direct"] : [])]);
}

/** `source` and options are for `blkback serve`. */
export async function startXentoolOf(
  { host, prefix }: Ground,
  vdev: string,
  source: readonly string[],
): Promise<DiskServer> {
  const args = ["blkback", "serve", ...source, "--domid", "1", "--vdev", vdev];
  const server = Bun.spawn([...prefix, XENTOOL, ...args], {
    env: { ...process.env, XENTOOL_SIM: host },
    stdio: ["ignore", "ignore", "pipe"],
  });
  await readUntil(server.stderr, "offering");
  return { name: "xentool", vdev, process: server };
}

export function startQemu(
  { image, direct, ...ground }: RawGround,
  vdev: string,
  engine: QemuEngine,
): DiskServer {
  return startQemuOf(ground, vdev, `QEMU ${engine}`, blockdev(image, direct, engine));
}

/**
 * `blockdevs` are options that define the node `disk`. The server is ready once a frontend has connected. Only then may
 * the next one start, which would serve this disk, too.
 */
export function startQemuOf(
  { host, prefix }: Ground,
  vdev: string,
  name: string,
  blockdevs: readonly string[],
): DiskServer {
  const machine = "-M xenpv -xen-attach -xen-domid 1 -nodefaults -nographic -monitor none".split(" ");
  const disk = ["-object", "iothread,id=io", "-device", `xen-disk,vdev=${vdev},drive=disk,iothread=io`];
  const argv = [...prefix, QEMU, ...machine, ...blockdevs, ...disk];
  const env = { ...process.env, ...programEnvironment(host, 0) };
  return { name, vdev, process: Bun.spawn(argv, { env, stdio: ["ignore", "ignore", "inherit"] }) };
}

/** One turn of a load on a server's disk. What the server used includes programs that it has started. */
export function measureServer(
  { host, prefix }: Ground,
  server: DiskServer,
  load: Load,
  seconds: number,
): Turn {
  const before = familySeconds(server.process.pid);
  const result = measureRing(host, server.vdev, load, seconds, prefix);
  if (result.errors > 0) throw new Error(`${server.name} answered ${result.errors} requests with an error`);
  const bytes = result.rampBytes + result.bytes;
  return { ...result, bytes, cpuSeconds: familySeconds(server.process.pid) - before };
}

/** Ends servers with SIGTERM. */
export async function stopServers(servers: readonly DiskServer[]): Promise<void> {
  for (const { process: server } of servers) server.kill("SIGTERM");
  await Promise.all(servers.map(({ process: server }) => server.exited));
}
