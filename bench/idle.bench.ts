// What an idle disk costs: one `blkback watch` with 4 disks and with 64 that are connected and do nothing, and what
// each of the 60 more takes. Proportional memory (PSS), threads, descriptors, and processor time over ten seconds.
// JSON on stdout.
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
import { cpuSeconds } from "./measure.ts";

const FEW = 4;
const MANY = 64;
const IDLE_MS = Number(process.env["IDLE_MS"] ?? 10_000);

interface Cost {
  readonly pssMiB: number;
  readonly threads: number;
  readonly descriptors: number;
  readonly cpuMs: number;
}

function field(path: string, name: string): number {
  return Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(readFileSync(path, "utf8"))?.[1]);
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
  const server = spawnXentool(["blkback", "watch", "--kind", "vbd", "--any-script"], { env });
  await readUntil(server.stderr, "serving the disks");
  const guests = await Promise.all(addresses.map((address) => HandmadeGuest.start(host, address)));
  // One after the other: HandmadeGuest waits ten seconds at most.
  for (const guest of guests) {
    await guest.connect();
    await guest.write(0, 1);
  }
  await Bun.sleep(2000);
  const before = cpuSeconds(server.pid) * 1000;
  await Bun.sleep(IDLE_MS);
  const cost = {
    pssMiB: field(`/proc/${server.pid}/smaps_rollup`, "Pss") / 1024,
    threads: field(`/proc/${server.pid}/status`, "Threads"),
    descriptors: readdirSync(`/proc/${server.pid}/fd`).length,
    cpuMs: cpuSeconds(server.pid) * 1000 - before,
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
    threads: each((it) => it.threads),
    descriptors: each((it) => it.descriptors),
    cpuMsPerSecond: each((it) => it.cpuMs / (IDLE_MS / 1000)),
  };
  console.log(JSON.stringify({ few, many, perIdleDisk }));
} finally {
  rmSync(dir, { recursive: true });
}
