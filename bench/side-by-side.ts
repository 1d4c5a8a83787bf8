// Contenders beside each other: each takes a short turn, in an order that changes from turn to turn, and ratios are
// medians of the turns' ratios, because these machines are shared. And the tables that show it: for each load the ratio
// of xentool to each other one, and how long requests took.
import { median, type Load, type Percentiles, type RawResult } from "./measure.ts";

/** What any disk is measured with. */
export const LOADS: readonly Load[] = [
  { rw: "randread", bs: "4k", depth: 1 },
  { rw: "randread", bs: "4k", depth: 32 },
  { rw: "randwrite", bs: "4k", depth: 1 },
  { rw: "randwrite", bs: "4k", depth: 32 },
  { rw: "read", bs: "64k", depth: 8 },
  { rw: "write", bs: "64k", depth: 8 },
];

/** What one contender did in its turn. */
export interface Turn extends RawResult {
  /** Of the server, and the bytes that it moved; not known of a file. */
  readonly cpuSeconds?: number;
  readonly bytes?: number;
}

export interface Rival {
  readonly name: string;
  readonly measure: (load: Load) => Turn;
}

export interface Contender {
  readonly megabytesPerSecond: number;
  readonly latencyUs: Percentiles;
  /** Of the server; null when there is none. */
  readonly cpuSecondsPerGB: number | null;
}

export interface Row {
  readonly load: string;
  /** xentool's speed divided by that of each other contender; above 1 xentool is faster. */
  readonly ratios: Readonly<Record<string, number>>;
  readonly contenders: Readonly<Record<string, Contender>>;
}

/** One of the rivals is named xentool. */
export function compare(rivals: readonly Rival[], load: Load, turns: number): Row {
  const all = rivals.map((rival) => ({ rival, turns: [] as Turn[] }));
  for (let turn = 0; turn < turns; turn++)
    for (let index = 0; index < all.length; index++) {
      const next = all[(turn + index) % all.length];
      next?.turns.push(next.rival.measure(load));
    }
  const ours = all.find(({ rival }) => rival.name === "xentool")?.turns ?? [];
  const ratioTo = (theirs: readonly Turn[]): number =>
    median(ours.map(({ bytesPerSecond }, at) => bytesPerSecond / (theirs[at]?.bytesPerSecond ?? NaN)));
  const others = all.filter((it) => it.turns !== ours);
  return {
    load: `${load.rw} ${load.bs} depth ${load.depth}`,
    ratios: Object.fromEntries(others.map((it) => [it.rival.name, Number(ratioTo(it.turns).toFixed(2))])),
    contenders: Object.fromEntries(all.map((it) => [it.rival.name, summary(it.turns)])),
  };
}

function summary(turns: readonly Turn[]): Contender {
  const of = (figure: (turn: Turn) => number): number => median(turns.map(figure));
  const latency = (name: keyof Percentiles): number => Math.round(of(({ latencyUs }) => latencyUs[name]));
  const sum = (figure: "cpuSeconds" | "bytes"): number =>
    turns.reduce((total, turn) => total + (turn[figure] ?? NaN), 0);
  const cost = sum("cpuSeconds") / (sum("bytes") / 1e9);
  return {
    megabytesPerSecond: Number((of(({ bytesPerSecond }) => bytesPerSecond) / 1e6).toFixed(1)),
    latencyUs: {
      p50: latency("p50"),
      p90: latency("p90"),
      p99: latency("p99"),
      p999: latency("p999"),
    },
    cpuSecondsPerGB: Number.isNaN(cost) ? null : Number(cost.toFixed(2)),
  };
}

/** Lines of cells, under each other, on stderr. */
export function printCells(lines: readonly (readonly string[])[]): void {
  const widths = (lines[0] ?? []).map((_, column) =>
    Math.max(...lines.map((line) => line[column]?.length ?? 0)),
  );
  for (const line of lines)
    console.error(`  ${line.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("  ")}`.trimEnd());
}

export function printTable(title: string, rows: readonly Row[]): void {
  const [first] = rows;
  if (first === undefined) return;
  const names = Object.keys(first.contenders);
  const others = Object.keys(first.ratios);
  console.error(`\n${title}`);
  const percentiles = ({ latencyUs: { p50, p90, p99, p999 } }: Contender): string =>
    [p50, p90, p99, p999].join(" / ");
  printCells([
    ["xentool ÷", ...others, "", ...names.map((name) => `µs, ${name}`)],
    ...rows.map(({ load, ratios, contenders }) => [
      load,
      ...others.map((name) => (ratios[name] ?? NaN).toFixed(2)),
      `${contenders["xentool"]?.megabytesPerSecond ?? NaN} MB/s`,
      ...Object.values(contenders).map(percentiles),
    ]),
  ]);
}
