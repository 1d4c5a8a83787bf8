// How fast a vchan is on the simulated platform, beside a unix socketpair that moves the same bytes: JSON on
// stdout. Rings of 64 KiB, 1 and 2 KiB, and 1 MiB; throughput each way and both ways, and round trips; what a
// gigabyte costs of CPU time at one end, and what two ends cost that have nothing to do. The socketpair's
// program is Perl's, so that nothing of ours is on both sides of the comparison. Both take turns; ratios are
// of medians.
//   bun bench/vchan.bench.ts [--megabytes N] [--rounds N] [--turns N]
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { SimHost } from "../src/sim/host.ts";
import { cpuSeconds } from "./measure.ts";

const XENTOOL = fileURLToPath(new URL("../cmd/xentool.ts", import.meta.url));
const RING_SIZES = [65_536, 0, 1_048_576];
const IDLE_MS = 3000;

/** Two processes and a socketpair: bytes one way in pieces of 64 KiB, then one byte there and back. */
const SOCKETPAIR = `
use Socket; use Time::HiRes qw(time);
my ($bytes, $rounds) = @ARGV;
socketpair(my $a, my $b, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die $!;
if (!fork) {
  close $a;
  for (my $left = $bytes; $left > 0; ) { my $n = sysread($b, my $x, 65536) or exit 1; $left -= $n }
  syswrite($b, "x");
  for (1 .. $rounds) { sysread($b, my $x, 1); syswrite($b, $x) }
  exit 0;
}
close $b;
my $piece = "x" x 65536; my $start = time;
for (my $left = $bytes; $left > 0; ) { $left -= syswrite($a, $piece, $left < 65536 ? $left : 65536) }
sysread($a, my $x, 1);
my $middle = time;
for (1 .. $rounds) { syswrite($a, "x"); sysread($a, $x, 1) }
my $end = time; wait; my ($u, $s, $cu, $cs) = times;
printf '{"bytesPerSecond":%f,"microseconds":%f,"cpuSeconds":%f}', $bytes / ($middle - $start),
  ($end - $middle) / $rounds * 1e6, $u + $s + $cu + $cs;
`;

interface Result {
  readonly kind: string;
  readonly bytesEachWay?: number;
  readonly bytesPerSecond?: number;
  readonly microseconds?: number;
  readonly cpuSeconds: number;
}

const { values } = parseArgs({
  options: {
    megabytes: { type: "string", default: "500" },
    rounds: { type: "string", default: "20000" },
    turns: { type: "string", default: "5" },
  },
});

async function output(argv: readonly string[], env: Record<string, string> = {}): Promise<string> {
  const child = Bun.spawn([...argv], { env: { ...process.env, ...env }, stdout: "pipe", stderr: "inherit" });
  const text = await new Response(child.stdout).text();
  if ((await child.exited) !== 0) throw new Error(`${argv.join(" ")} failed`);
  return text;
}

function vchan(host: SimHost, domid: number, ...args: readonly string[]): Promise<string> {
  const env = { XENTOOL_SIM: host.dir, XENTOOL_DOMID: String(domid) };
  return output([process.execPath, XENTOOL, "vchan", "bench", ...args], env);
}

interface Turn {
  readonly socketpair: Result;
  readonly vchan: readonly Result[];
}

function median(turns: readonly Turn[], figure: (turn: Turn) => number | undefined): number {
  const values = turns.map((turn) => figure(turn) ?? NaN).sort((a, b) => a - b);
  return values[values.length >> 1] ?? NaN;
}

const ofKind = (turn: Turn, kind: string): Result | undefined =>
  turn.vchan.find((result) => result.kind === kind);

async function measure(host: SimHost, ringSize: number): Promise<Result[]> {
  const size = String(ringSize);
  const bytes = String((Number(values.megabytes) * 1e6) / (ringSize === 0 ? 10 : 1));
  const [, text] = await Promise.all([
    vchan(host, 0, "listen", "1", "bench", "--read-size", size, "--write-size", size),
    vchan(host, 1, "connect", "0", "bench", "--json", "--bytes", bytes, "--rounds", values.rounds),
  ]);
  return (JSON.parse(text) as { results: Result[] }).results;
}

/** Percent of one CPU that both ends of a connected vchan take while nothing comes from either side. */
async function idlePercent(host: SimHost): Promise<number> {
  const ends = [
    ["0", "listen", "1", "idle", "-v"],
    ["1", "connect", "0", "idle", "--wait", "-v"],
  ].map(([domid = "", ...args]) =>
    Bun.spawn([process.execPath, XENTOOL, "vchan", ...args], {
      env: { ...process.env, XENTOOL_SIM: host.dir, XENTOOL_DOMID: domid },
      stdio: ["pipe", "ignore", "pipe"],
    }),
  );
  try {
    for (const { stderr } of ends) await stderr.getReader().read();
    await Bun.sleep(IDLE_MS / 3);
    const before = ends.map(({ pid }) => cpuSeconds(pid));
    await Bun.sleep(IDLE_MS);
    const seconds = ends.reduce((sum, { pid }, i) => sum + cpuSeconds(pid) - (before[i] ?? 0), 0);
    return (100 * seconds) / (IDLE_MS / 1000);
  } finally {
    for (const end of ends) end.kill();
    await Promise.all(ends.map(({ exited }) => exited));
  }
}

function cpuPerByte(result: Result | undefined): number {
  return (result?.cpuSeconds ?? NaN) / (result?.bytesEachWay ?? NaN);
}

const bytes = String(Number(values.megabytes) * 1e6);
const host = await SimHost.start({ domains: 2 });
const rings = [];
let idle: number;
try {
  for (const ringSize of RING_SIZES) {
    const turns: Turn[] = [];
    for (let turn = 0; turn < Number(values.turns); turn++) {
      const socketpair = JSON.parse(await output(["perl", "-e", SOCKETPAIR, bytes, values.rounds])) as Result;
      turns.push({ socketpair, vchan: await measure(host, ringSize) });
    }
    const sent = median(turns, (turn) => ofKind(turn, "send")?.bytesPerSecond);
    const received = median(turns, (turn) => ofKind(turn, "receive")?.bytesPerSecond);
    const pair = median(turns, (turn) => turn.socketpair.bytesPerSecond);
    const tripUs = median(turns, (turn) => ofKind(turn, "round-trip")?.microseconds);
    const pairTripUs = median(turns, (turn) => turn.socketpair.microseconds);
    rings.push({
      ringSize,
      sendRatio: sent / pair,
      receiveRatio: received / pair,
      roundTripRatio: pairTripUs / tripUs,
      cpuSecondsPerGB: 1e9 * median(turns, (turn) => cpuPerByte(ofKind(turn, "send"))),
      turns,
    });
  }
  idle = await idlePercent(host);
} finally {
  await host.stop();
}
process.stdout.write(`${JSON.stringify({ bench: "vchan", platform: "sim", rings, idlePercent: idle })}\n`);
