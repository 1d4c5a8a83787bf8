// What 1,000 inspects a second cost the guest whose ring is looked at: requests a second over a busy ring of a
// simulated host, without and with a second process that inspects it, in turns. One JSON document on stdout.
import { fileURLToPath } from "node:url";
import { toDomid } from "../src/core/types.ts";
import { SimHost } from "../src/sim/host.ts";
import { openPlatform } from "../src/platform/open.ts";
import { Xenstore } from "../src/xenstore/client.ts";
import { RingTransport } from "../src/xenstore/transports/ring.ts";
import { inspectRing } from "../src/xsring/report.ts";
import { openDomainRing } from "../src/xsring/source.ts";
import { GuestRing } from "../test/sim/xsring-harness.ts";

const INSPECTS_PER_SECOND = 1000;
const PERIOD_MS = 200;
const PERIODS = 30;
const IN_FLIGHT = 4;

/** Inspects the ring of domain 1 of the host in `dir`, evenly, until killed. Each tick prints what it did. */
async function inspectForEver(dir: string): Promise<never> {
  const platform = openPlatform({ name: "sim", dir, domid: toDomid(0) });
  const { page } = openDomainRing(platform, toDomid(1), "r");
  const start = performance.now();
  let done = 0;
  let busyMs = 0;
  for (let printed = 0; ;) {
    const now = performance.now();
    // What was missed while stopped is not made up for.
    const due = Math.min(Math.floor(((now - start) * INSPECTS_PER_SECOND) / 1000) - done, 20);
    for (let inspect = 0; inspect < due; inspect++) inspectRing(page);
    done = Math.floor(((now - start) * INSPECTS_PER_SECOND) / 1000);
    busyMs += performance.now() - now;
    if (done - printed >= INSPECTS_PER_SECOND / 10) {
      process.stdout.write(`${busyMs / (done - printed)}\n`);
      printed = done;
      busyMs = 0;
    }
    await Bun.sleep(1);
  }
}

interface Speed {
  readonly perSecond: number;
  /** Of guest and server together, which are this process: what other processes take does not show in it. */
  readonly cpuUs: number;
}

/** Requests for `durationMs`, a few in flight all the time. */
async function measure(xs: Xenstore, durationMs: number): Promise<Speed> {
  const end = performance.now() + durationMs;
  const cpu = process.cpuUsage();
  let count = 0;
  const client = async (node: string): Promise<void> => {
    for (; performance.now() < end; count += 2) {
      await xs.write(node, String(count));
      await xs.read(node);
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, (_, index) => client(`data/${index}`)));
  const { user, system } = process.cpuUsage(cpu);
  return { perSecond: (count * 1000) / durationMs, cpuUs: (user + system) / count };
}

/** A number each: milliseconds that one inspect took, on the average of 100. */
async function readTicks(stream: ReadableStream<Uint8Array>, into: number[]): Promise<void> {
  let text = "";
  for await (const bytes of stream) {
    const lines = (text + new TextDecoder().decode(bytes)).split("\n");
    text = lines.pop() as string;
    into.push(...lines.map(Number));
  }
}

function median(speeds: readonly Speed[], name: keyof Speed): number {
  const values = speeds.map((speed) => speed[name]).toSorted((a, b) => a - b);
  return values[Math.floor(values.length / 2)];
}

function round(value: number): number {
  return Number(value.toPrecision(4));
}

async function bench(): Promise<void> {
  const host = await SimHost.start({ domains: 2 });
  const guest = new GuestRing(host, 1);
  const xs = new Xenstore(await RingTransport.connect(guest.client(), 5000));
  const self = fileURLToPath(import.meta.url);
  const inspector = Bun.spawn([process.execPath, self, host.dir], { stdio: ["ignore", "pipe", "inherit"] });
  const ticks: number[] = [];
  const ticking = readTicks(inspector.stdout, ticks);
  for (let warmUp = 0; warmUp < 4; warmUp++) await measure(xs, PERIOD_MS);
  const alone: Speed[] = [];
  const watched: Speed[] = [];
  for (let period = 0; period < PERIODS; period++) {
    inspector.kill("SIGSTOP");
    alone.push(await measure(xs, PERIOD_MS));
    inspector.kill("SIGCONT");
    watched.push(await measure(xs, PERIOD_MS));
  }
  inspector.kill("SIGKILL");
  await inspector.exited;
  await ticking;
  xs.close();
  await guest.close();
  await host.settle();
  await host.stop();
  const cpuUs = { alone: median(alone, "cpuUs"), watched: median(watched, "cpuUs") };
  const result = {
    inspectsPerSecond: INSPECTS_PER_SECOND,
    inspectMs: round(
      ticks.slice(ticks.length / 2).toSorted((a, b) => a - b)[Math.floor(ticks.length / 4)] ?? 0,
    ),
    requestsPerSecond: {
      alone: round(median(alone, "perSecond")),
      watched: round(median(watched, "perSecond")),
    },
    cpuUsPerRequest: { alone: round(cpuUs.alone), watched: round(cpuUs.watched) },
    slowdownPercent: round((cpuUs.watched / cpuUs.alone - 1) * 100),
  };
  process.stdout.write(`${JSON.stringify(result)}\n`);
}

const [dir] = Bun.argv.slice(2);
await (dir === undefined ? bench() : inspectForEver(dir));
