// The NBD client of a disk beside nbdcopy: both read the same export of the same nbdkit, with four connections and as
// many requests of the same size under way, in short turns one after the other. JSON on stdout: medians of the speed,
// of the client's processor time, and of the turns' ratios client/nbdcopy.
import { nbdkit } from "../test/support/nbd-servers.ts";
import { NbdExport } from "../test/interop/nbd-export.ts";
import { IO_READ } from "../src/native/reactor.ts";
import { median } from "./measure.ts";

const MIB = 1 << 20;
const EXPORT_MIB = 256;
const REQUEST_BYTES = 128 * 1024;
const CONNECTIONS = 4;
const PER_CONNECTION = 8;
const TURNS = 21;

/** Of one turn. */
interface Cost {
  readonly mibPerSecond: number;
  /** Processor time for a GiB. */
  readonly cpuMs: number;
}

function cost(begunMs: number, cpuUs: number): Cost {
  return {
    mibPerSecond: Math.round((EXPORT_MIB * 1000) / (performance.now() - begunMs)),
    cpuMs: Math.round((cpuUs / 1000) * (1024 / EXPORT_MIB)),
  };
}

/** All requests read into the same few places. */
function readAll(disk: NbdExport): Cost {
  const size = EXPORT_MIB * MIB;
  const window = CONNECTIONS * PER_CONNECTION;
  const cpu = process.cpuUsage();
  const begunMs = performance.now();
  let ended = 0;
  for (let at = 0, n = 0; at < size; at += REQUEST_BYTES, n++) {
    if (n - ended === window) ended += disk.ended(1).length;
    const place = disk.memory.address + (n % window) * REQUEST_BYTES;
    disk.target.start(IO_READ, n % window, at, REQUEST_BYTES, place);
  }
  disk.ended(size / REQUEST_BYTES - ended);
  const { user, system } = process.cpuUsage(cpu);
  return cost(begunMs, user + system);
}

async function copyAll(uri: string): Promise<Cost> {
  const sizes = [`--request-size=${REQUEST_BYTES}`, `--requests=${PER_CONNECTION}`];
  const begunMs = performance.now();
  const child = Bun.spawn(["nbdcopy", `--connections=${CONNECTIONS}`, ...sizes, uri, "null:"], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  if ((await child.exited) !== 0) throw new Error("nbdcopy failed");
  return cost(begunMs, Number(child.resourceUsage()?.cpuTime.total ?? Number.NaN));
}

await using server = await nbdkit([], () => ["memory", `${EXPORT_MIB}M`]);
const disk = await NbdExport.open(server.uri, CONNECTIONS);
for (let at = 0; at < EXPORT_MIB; at++) disk.write(at * MIB, new Uint8Array(MIB).fill(at + 1));
const turns: { readonly client: Cost; readonly nbdcopy: Cost }[] = [];
for (let turn = 0; turn < TURNS; turn++)
  turns.push({ client: readAll(disk), nbdcopy: await copyAll(server.uri) });
disk.close();
const of = (figure: (turn: (typeof turns)[number]) => number): number => median(turns.map(figure));
const result = {
  client: { mibPerSecond: of((it) => it.client.mibPerSecond), cpuMsPerGib: of((it) => it.client.cpuMs) },
  nbdcopy: { mibPerSecond: of((it) => it.nbdcopy.mibPerSecond), cpuMsPerGib: of((it) => it.nbdcopy.cpuMs) },
  ratio: Number(of((it) => it.client.mibPerSecond / it.nbdcopy.mibPerSecond).toFixed(2)),
};
console.log(JSON.stringify(result));
