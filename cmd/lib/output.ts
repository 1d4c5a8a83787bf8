// What commands print on stdout: JSON documents, tables, and quantities in human-readable units. Colours and
// redrawing are used only on a terminal, never in a pipe, and there are no colours when NO_COLOR is set.
import { styleText } from "node:util";
import { counted } from "../../src/core/counted.ts";

type Style = Parameters<typeof styleText>[0];

const BYTE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const TIME_UNITS = ["ns", "µs", "ms", "s"];

/** Prints one line on stdout. */
export function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Prints one JSON document; with `compact`, one line of a stream. */
export function printJson(value: unknown, compact = false): void {
  print(
    JSON.stringify(value, (_key, it: unknown) => (typeof it === "bigint" ? Number(it) : it), compact ? 0 : 2),
  );
}

/** `text` in a colour, if stdout is a terminal that shows colours. */
export function paint(style: Style, text: string): string {
  return styleText(style, text, { stream: process.stdout });
}

/** `value` in the smallest of `units` in which it is below `step`; each unit is `step` times the previous one. */
function scale(value: number, step: number, units: readonly string[]): string {
  let scaled = value;
  let unit = 0;
  const shown = (): string => scaled.toFixed(unit === 0 || scaled >= 100 ? 0 : 1).replace(/\.0$/, "");
  while (Number(shown()) >= step && unit < units.length - 1) {
    scaled /= step;
    unit++;
  }
  return `${shown()} ${units[unit]}`;
}

/** 1536 as "1.5 KiB": at most four digits. */
export function formatBytes(bytes: number): string {
  return scale(bytes, 1024, BYTE_UNITS);
}

/** 1234567 as "1 234 567". */
export function formatCount(count: number): string {
  return String(Math.round(count)).replace(/\B(?=(\d{3})+$)/g, " ");
}

/** 1 and "request" as "1 request", 1234 as "1 234 requests". */
export function formatCounted(count: number, noun: string, many?: string): string {
  return counted(Math.round(count), noun, { shown: formatCount(count), many });
}

/** A duration in a suitable unit: "850 ns", "12.3 µs", "4.5 ms", "6.1 s". */
export function formatDuration(ns: number): string {
  return scale(ns, 1000, TIME_UNITS);
}

export interface Column {
  readonly title: string;
  /** Numbers are easier to read when aligned right. */
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
