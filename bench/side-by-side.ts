// The tables in which contenders stand beside each other: for each load the ratio of xentool to each other one, and how
// long requests took.
import type { Percentiles } from "./measure.ts";

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
