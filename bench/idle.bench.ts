// What an idle guest costs: one `blkback watch` with 4 guests and with 64, each with a disk that is connected and does
// nothing, and what each of the 60 more takes: proportional memory (PSS), processes, threads, descriptors, and time
// of a processor in ten seconds. JSON on stdout. ISOLATION=thread measures the other way to serve them.
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { DeviceAddress } from "../src/blkback/address.ts";
import { createDevice } from "../src/blkback/toolstack.ts";
import { toDomid } from "../src/core/types.ts";
import { SimHost } from "../src/sim/host.ts";
import { Xenstore } from "../src/xenstore/client.ts";
import { HandmadeGuest } from "../test/sim/blk-guest.ts";
import { spawnXentool } from "../test/e2e/executable.ts";
import { readUntil } from "../test/support/process.ts";
import { familyOf, familySeconds } from "./measure.ts";

const FEW = 4;
const MANY = Number(process.env["MANY"] ?? 64);
const IDLE_MS = Number(process.env["IDLE_MS"] ?? 10_000);
const ISOLATION = process.env["ISOLATION"] ?? "process";

interface Cost {
  readonly pssMiB: number;
  readonly processes: number;
  readonly threads: number;
  readonly descriptors: number;
  readonly cpuMs: number;
}

function field(path: string, name: string): number {
  return Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(readFileSync(path, "utf8"))?.[1]);
}

function sum<T>(items: readonly T[], of: (item: T) => number): number {
  return items.reduce((total, item) => total + of(item), 0);
}

async function costOf(disks: number, dir: string): Promise<Cost> {
  mkdirSync(dir);
  const host = await SimHost.start({ domains: 1 + disks });
  const dom0 = host.platform(0);
  const xenstore = await Xenstore.connect(dom0);
  const addresses = Array.from({ length: disks }, (_, index): DeviceAddress => ({
    backend: toDomid(0),
    kind: "vbd",
    frontend: toDomid(1 + index),
    devid: 51728,
  }));
  for (const address of addresses) {
    const params = join(dir, `${address.frontend}.img`);
    writeFileSync(params, new Uint8Array(1 << 20));
    await createDevice(xenstore, { address, readOnly: false, params, deviceType: "disk" });
  }
  const env = { XENTOOL_SIM: host.dir, XENTOOL_DOMID: "0" };
  const watching = ["blkback", "watch", "--kind", "vbd", "--any-script", "--isolation", ISOLATION];
  const server = spawnXentool(watching, { env });
  await readUntil(server.stderr, "serving the disks");
  const guests = await Promise.all(addresses.map((address) => HandmadeGuest.start(host, address)));
  // One after the other: HandmadeGuest waits ten seconds at most.
  for (const guest of guests) {
    await guest.connect();
    await guest.write(0, 1);
  }
  await Bun.sleep(2000);
  const before = familySeconds(server.pid) * 1000;
  await Bun.sleep(IDLE_MS);
  const family = familyOf(server.pid);
  const cost = {
    pssMiB: sum(family, (pid) => field(`/proc/${pid}/smaps_rollup`, "Pss")) / 1024,
    processes: family.length,
    threads: sum(family, (pid) => field(`/proc/${pid}/status`, "Threads")),
    descriptors: sum(family, (pid) => readdirSync(`/proc/${pid}/fd`).length),
    cpuMs: familySeconds(server.pid) * 1000 - before,
  };
  console.error(`  ${disks} disks: ${JSON.stringify(cost)}`);
  for (const guest of guests) guest.close();
  server.kill("SIGTERM");
  await server.exited;
  xenstore.close();
  dom0.close();
  await host.stop();
  return cost;
}

const dir = mkdtempSync(join(tmpdir(), "xentool-bench-"));
try {
  const few = await costOf(FEW, join(dir, "few"));
  const many = await costOf(MANY, join(dir, "many"));
  const each = (of: (cost: Cost) => number): number =>
    Number(((of(many) - of(few)) / (MANY - FEW)).toFixed(3));
  const perIdleDisk = {
    pssMiB: each((it) => it.pssMiB),
    processes: each((it) => it.processes),
    threads: each((it) => it.threads),
    descriptors: each((it) => it.descriptors),
    cpuMsPerSecond: each((it) => it.cpuMs / (IDLE_MS / 1000)),
  };
  console.log(JSON.stringify({ few, many, perIdleDisk }));
} finally {
  rmSync(dir, { recursive: true });
}
