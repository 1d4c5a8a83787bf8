// How fast a vchan is on the simulated platform, beside Debian's libxenvchan on the same platform, and beside a unix
// socketpair that moves the same bytes. Rings of 64 KiB, 1 and 2 KiB, and 1 MiB; throughput each way and both ways,
// and round trips; what a gigabyte costs of CPU time at one end, and what two ends cost that have nothing to do. The
// others' programs are C (test/xen/programs/vchan-peer.c) and Perl, so that nothing of ours is on both sides of a
// comparison. All take turns; ratios are medians of the turns' ratios. JSON on stdout, a table on stderr.
//   bun bench/vchan.bench.ts [--long] [--megabytes N] [--rounds N] [--turns N]
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { BENCH_KINDS } from "../src/vchan/bench.ts";
import { SimHost } from "../src/sim/host.ts";
import { installLibraries } from "../src/sim/programs.ts";
import { compilePeer, peerFigures, type PeerFigures } from "./libxenvchan.ts";
import { cpuSeconds, median } from "./measure.ts";
import { printCells } from "./side-by-side.ts";

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
    megabytes: { type: "string", default: "300" },
    rounds: { type: "string", default: "10000" },
    turns: { type: "string" },
    long: { type: "boolean", default: false },
  },
});
const TURNS = Number(values.turns ?? (values.long ? 7 : 2));

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
  readonly libxenvchan: PeerFigures;
  readonly vchan: readonly Result[];
}

function medianOf(turns: readonly Turn[], figure: (turn: Turn) => number | undefined): number {
  return median(turns.map((turn) => figure(turn) ?? NaN));
}

const ofKind = (turn: Turn, kind: string): Result | undefined =>
  turn.vchan.find((result) => result.kind === kind);

/** How often a turn's xentool is as fast as its libxenvchan, in one kind. */
function ratioToPeer({ vchan, libxenvchan }: Turn, kind: string): number {
  const ours = vchan.find((result) => result.kind === kind);
  const theirs = libxenvchan[kind] ?? NaN;
  return ours?.microseconds === undefined
    ? (ours?.bytesPerSecond ?? NaN) / 1e6 / theirs
    : theirs / ours.microseconds;
}

/** Megabytes each way. Small rings are slow. */
const amount = (ringSize: number): number => Number(values.megabytes) / (ringSize === 0 ? 10 : 1);

async function measure(host: SimHost, ringSize: number): Promise<Result[]> {
  const size = String(ringSize);
  const bytes = String(amount(ringSize) * 1e6);
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

async function oneTurn(host: SimHost, peer: string, ringSize: number): Promise<Turn> {
  const bytes = amount(ringSize) * 1e6;
  return {
    socketpair: JSON.parse(
      await output(["perl", "-e", SOCKETPAIR, String(Number(values.megabytes) * 1e6), values.rounds]),
    ) as Result,
    libxenvchan: await peerFigures(host.dir, peer, ringSize, bytes, Number(values.rounds)),
    vchan: await measure(host, ringSize),
  };
}

async function measureRing(host: SimHost, peer: string, ringSize: number) {
  const turns: Turn[] = [];
  for (let turn = 0; turn < TURNS; turn++) turns.push(await oneTurn(host, peer, ringSize));
  const ofPair = ({ socketpair }: Turn): number => socketpair.bytesPerSecond ?? NaN;
  return {
    ringSize,
    sendRatio: medianOf(turns, (turn) => (ofKind(turn, "send")?.bytesPerSecond ?? NaN) / ofPair(turn)),
    receiveRatio: medianOf(turns, (turn) => (ofKind(turn, "receive")?.bytesPerSecond ?? NaN) / ofPair(turn)),
    roundTripRatio: medianOf(
      turns,
      (turn) => (turn.socketpair.microseconds ?? NaN) / (ofKind(turn, "round-trip")?.microseconds ?? NaN),
    ),
    toLibxenvchan: Object.fromEntries(
      BENCH_KINDS.map((kind) => [
        kind,
        Number(medianOf(turns, (turn) => ratioToPeer(turn, kind)).toFixed(2)),
      ]),
    ),
    cpuSecondsPerGB: 1e9 * medianOf(turns, (turn) => cpuPerByte(ofKind(turn, "send"))),
    turns,
  };
}

const scratch = mkdtempSync(join(tmpdir(), "xentool-bench-"));
const host = await SimHost.start({ domains: 2, limits: { sharePages: 4096 } });
try {
  installLibraries(host.dir);
  const peer = compilePeer(scratch);
  const rings = [];
  for (const ringSize of RING_SIZES) rings.push(await measureRing(host, peer, ringSize));
  const idle = await idlePercent(host);
  console.error("\nvchan, xentool ÷ libxenvchan, of round trips the rates");
  printCells([
    ["rings", ...BENCH_KINDS],
    ...rings.map(({ ringSize, toLibxenvchan }) => [
      ringSize === 0 ? "1 and 2 KiB" : `${ringSize / 1024} KiB`,
      ...BENCH_KINDS.map((kind) => String(toLibxenvchan[kind])),
    ]),
  ]);
  console.log(JSON.stringify({ bench: "vchan", platform: "sim", rings, idlePercent: idle }));
} finally {
  await host.stop();
  rmSync(scratch, { recursive: true });
}
