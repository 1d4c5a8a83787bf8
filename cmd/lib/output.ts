// What commands print on stdout: JSON documents, tables, and quantities in units that people read. Colours
// and redrawing only on a terminal, never in a pipe, and no colours where NO_COLOR is set.
import { styleText } from "node:util";

type Style = Parameters<typeof styleText>[0];

const BYTE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"] as const;

/** One line on stdout. */
export function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** One JSON document, or with `compact` one line of a stream. */
export function printJson(value: unknown, compact = false): void {
  print(
    JSON.stringify(value, (_key, it: unknown) => (typeof it === "bigint" ? Number(it) : it), compact ? 0 : 2),
  );
}

/** `text` in a colour, where stdout is a terminal that shows colours. */
export function paint(style: Style, text: string): string {
  return styleText(style, text, { stream: process.stdout });
}

/** 1536 as "1.5 KiB": at most four digits. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < BYTE_UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  const digits = unit === 0 || value >= 100 ? 0 : 1;
  return `${value.toFixed(digits).replace(/\.0$/, "")} ${BYTE_UNITS[unit]}`;
}

/** 1234567 as "1 234 567". */
export function formatCount(count: number): string {
  return String(Math.round(count)).replace(/\B(?=(\d{3})+$)/g, " ");
}

/** A duration in the unit that suits it: "850 ns", "12.3 µs", "4.5 ms", "6.1 s". */
export function formatDuration(ns: number): string {
  const [divisor, unit] = ns < 1e3 ? [1, "ns"] : ns < 1e6 ? [1e3, "µs"] : ns < 1e9 ? [1e6, "ms"] : [1e9, "s"];
  const value = ns / divisor;
  return `${value >= 100 || unit === "ns" ? Math.round(value) : value.toFixed(1)} ${unit}`;
}

export interface Column {
  readonly title: string;
  /** Numbers read better on the right. */
  readonly align?: "left" | "right";
}

/** Rows under titles, each column as wide as its widest cell. */
export function formatTable(columns: readonly Column[], rows: readonly (readonly string[])[]): string {
  const widths = columns.map(({ title }, index) =>
    Math.max(...[title, ...rows.map((row) => row[index] ?? "")].map((cell) => Bun.stringWidth(cell))),
  );
  const line = (cells: readonly string[]): string =>
    columns
      .map(({ align }, index) => {
        const cell = cells[index] ?? "";
        const space = " ".repeat((widths[index] ?? 0) - Bun.stringWidth(cell));
        return align === "right" ? space + cell : cell + space;
      })
      .join("  ")
      .trimEnd();
  const titles = paint("bold", line(columns.map(({ title }) => title)));
  return [titles, ...rows.map(line)].join("\n");
}
