// Draws what `xentool top` shows, as lines that fit a screen, and as one line for a pipe. Pure: the terminal itself is
// top.ts' business.
import { escapeText } from "../../src/core/log.ts";
import { formatBytes, formatDuration } from "./output.ts";
import { sparkline } from "./sparkline.ts";
import { cut, wrap, type ScreenSize } from "./terminal.ts";
import type { DiskRow, RingRow, TopView } from "./top-model.ts";
import type { Sort } from "./top-sorts.ts";
import { counted } from "../../src/core/counted.ts";

interface Column<Row> {
  readonly title: string;
  readonly width: number;
  readonly align?: "right";
  readonly cell: (row: Row) => string;
}

/** What a narrow terminal does without, in this order. */
const LEFT_OUT = ["source", "limit", "trend", "KiB/s", "median", "mostly", "queue"];
/** Text that is cut is worth showing in this many columns. */
const TEXT_LEAST = 12;
const TREND = 6;
/** Whoever looks for the reason of a busy xenstored must not believe that these are all of its clients. */
const RINGS = "rings of other domains; this one's programs use a socket and are not shown";
const RINGS_BRIEFLY = "rings of other domains, not of this one";

const DISK_COLUMNS: readonly Column<DiskRow>[] = [
  { title: "disk", width: 9, cell: (it) => `${it.domid}/${it.vdev}` },
  { title: "IOPS", width: 6, align: "right", cell: (it) => count(iopsOf(it)) },
  { title: "trend", width: TREND, cell: (it) => sparkline(it.history, TREND) },
  { title: "MiB/s", width: 6, align: "right", cell: (it) => mebibytes(it.readBytes + it.writeBytes) },
  { title: "median", width: 6, align: "right", cell: (it) => latency(it.medianUs) },
  { title: "99 %", width: 5, align: "right", cell: (it) => latency(it.p99Us) },
  { title: "queue", width: 5, align: "right", cell: (it) => String(it.queue) },
  { title: "wait", width: 4, align: "right", cell: (it) => String(it.waiting) },
  { title: "limit", width: 8, cell: limitText },
  { title: "state", width: 6, cell: (it) => STATES[it.state] ?? it.state },
  { title: "source", width: 8, cell: (it) => escapeText(it.source?.replace(/^.*\//, "") ?? "", 200) },
];

const RING_COLUMNS: readonly Column<RingRow>[] = [
  { title: "domain", width: 16, cell: (it) => `${it.domid} ${escapeText(it.name ?? "", 60)}` },
  { title: "req/s", width: 7, align: "right", cell: (it) => (it.isEstimate ? "~" : "") + count(it.requests) },
  { title: "trend", width: TREND, cell: (it) => sparkline(it.history, TREND) },
  { title: "KiB/s", width: 7, align: "right", cell: (it) => (it.bytes / 1024).toFixed(1) },
  { title: "who waits", width: 18, cell: waitText },
  { title: "mostly", width: 20, cell: mostlyText },
];

const STATES: Readonly<Record<string, string>> = {
  Connected: "in use",
  InitWait: "free",
  Closing: "going",
  Closed: "closed",
};

function iopsOf({ reads, writes, flushes, discards }: DiskRow): number {
  return reads + writes + flushes + discards;
}

/** At most 6 characters up to a thousand million. */
function count(value: number): string {
  const whole = Math.round(value);
  return whole < 1_000_000 ? String(whole) : `${(whole / 1e6).toFixed(1)}M`;
}

function mebibytes(bytes: number): string {
  const value = bytes / 2 ** 20;
  return value.toFixed(value < 1000 ? 1 : 0);
}

/** At most 5 characters up to a thousand seconds. */
function latency(us: number): string {
  if (us === 0) return "";
  const [value, unit] = us < 1000 ? [us, "µs"] : us < 1e6 ? [us / 1000, "ms"] : [us / 1e6, "s"];
  return `${value.toFixed(value < 10 && unit !== "µs" ? 1 : 0)}${unit}`;
}

/** The tightest way to say it: 500/s, 20MiB; what is set by direction, or for both quantities, ends with +. */
function limitText({ limits: { iops, bandwidth } }: DiskRow): string {
  const of = ({ total, read, write }: typeof iops): number => total || read || write;
  const bytes = formatBytes(of(bandwidth)).replace(/ |iB$/g, "");
  const texts = [of(iops) === 0 ? "" : `${count(of(iops))}/s`, of(bandwidth) === 0 ? "" : `${bytes}/s`];
  const given = texts.filter((text) => text !== "");
  const isMore = given.length > 1 || (iops.read && iops.write) || (bandwidth.read && bandwidth.write);
  return given.length === 0 ? "" : `${given[0]}${isMore ? "+" : ""}`;
}

function waitText({ verdict, waitsMs }: RingRow): string {
  const since = `for ${formatDuration(waitsMs * 1e6)}`;
  switch (verdict) {
    case "guest-waits":
      return `guest ${since}`;
    case "server-waits":
      return `xenstored ${since}`;
    case "corrupt":
      return "ring is corrupt";
    case "reconnect-pending":
      return "guest reconnects";
    case "healthy":
      return "";
  }
}

function mostlyText({ mostly }: RingRow): string {
  return mostly === null ? "" : `${mostly.type} ${Math.round(mostly.share * 100)} %`;
}

/** Sorted with the most remarkable first. */
export function sorted({ disks, rings }: TopView, sort: Sort): Pick<TopView, "disks" | "rings"> {
  const byName = (a: DiskRow | RingRow, b: DiskRow | RingRow): number =>
    a.domid - b.domid || ("vdev" in a && "vdev" in b ? a.vdev.localeCompare(b.vdev) : 0);
  const by =
    <Row extends DiskRow | RingRow>(value: (row: Row) => number) =>
    (a: Row, b: Row): number =>
      value(b) - value(a) || byName(a, b);
  const disk: Readonly<Record<Sort, (row: DiskRow) => number>> = {
    load: iopsOf,
    bytes: (it) => it.readBytes + it.writeBytes,
    latency: (it) => it.p99Us,
    waiting: (it) => it.waiting * 1000 + it.queue,
    name: () => 0,
  };
  const ring: Readonly<Record<Sort, (row: RingRow) => number>> = {
    load: (it) => it.requests,
    bytes: (it) => it.bytes,
    latency: (it) => it.waitsMs,
    waiting: (it) => it.waitsMs,
    name: () => 0,
  };
  return { disks: disks.toSorted(by(disk[sort])), rings: rings.toSorted(by(ring[sort])) };
}

/** The whole screen: at most `height` lines of at most `width` columns. */
export function drawTop(view: TopView, sort: Sort, { width, height }: ScreenSize): string[] {
  const { disks, rings } = sorted(view, sort);
  const time = view.time.toTimeString().slice(0, 8);
  const head = `xentool top  ${time}, over ${formatDuration(view.intervalMs * 1e6)}, sorted by ${sort}`;
  const foot = "q quit    sort: l load  b bytes  t latency  w waiting  n name";
  const notes = view.notes.flatMap((note) => wrap(escapeText(note, 300), width));
  // Head and foot, two blank lines, two lines of titles and one of words.
  const room = Math.max(0, height - 7 - notes.length);
  const [diskRoom, ringRoom] = share(room, Math.max(1, disks.length), Math.max(1, rings.length));
  const lines = [
    head,
    ...notes,
    "",
    ...table(DISK_COLUMNS, disks, diskRoom, width, "no disk is served here"),
    "",
    width < RINGS.length ? RINGS_BRIEFLY : RINGS,
    ...table(RING_COLUMNS, rings, ringRoom, width, "none is known here"),
  ];
  return [...lines.slice(0, Math.max(0, height - 1)), foot].slice(0, height).map((line) => cut(line, width));
}

/** Divides `room` rows between two tables, so that what one does not need is the other's. */
export function share(room: number, first: number, second: number): [number, number] {
  const half = Math.floor(room / 2);
  const own =
    second <= half ? Math.min(first, room - second) : Math.min(first, Math.max(half, room - second));
  return [own, Math.min(second, room - own)];
}

function table<Row>(
  all: readonly Column<Row>[],
  rows: readonly Row[],
  room: number,
  width: number,
  none: string,
): string[] {
  const columns = fitting(all, width);
  const titles = line(columns.map(({ title }, at) => align(title, columns[at])));
  if (rows.length === 0) return [titles, none].slice(0, 1 + room);
  const isCut = rows.length > room;
  const shown = rows.slice(0, isCut ? Math.max(0, room - 1) : room);
  const more = isCut && room > 0 ? [`and ${rows.length - shown.length} more`] : [];
  return [titles, ...shown.map((row) => line(columns.map((it) => align(it.cell(row), it)))), ...more];
}

/** The columns that fit: the last one gets what is left. */
function fitting<Row>(all: readonly Column<Row>[], width: number): readonly Column<Row>[] {
  let columns = all;
  const needed = (): number =>
    columns.slice(0, -1).reduce((sum, it) => sum + it.width + 1, leastOf(columns.at(-1)));
  for (const title of LEFT_OUT) if (needed() > width) columns = columns.filter((it) => it.title !== title);
  while (columns.length > 1 && needed() > width) columns = columns.slice(0, -1);
  const last = columns.at(-1);
  if (last === undefined || last.align === "right") return columns;
  const used = columns.slice(0, -1).reduce((sum, it) => sum + it.width + 1, 0);
  return [...columns.slice(0, -1), { ...last, width: Math.max(0, width - used) }];
}

function leastOf<Row>(column: Column<Row> | undefined): number {
  return Math.min(column?.width ?? 0, TEXT_LEAST);
}

function align<Row>(text: string, column: Column<Row> | undefined): string {
  const { width = 0, align: side } = column ?? {};
  const fit = cut(text, width);
  return side === "right" ? fit.padStart(width) : fit.padEnd(width);
}

function line(cells: readonly string[]): string {
  return cells.join(" ").trimEnd();
}

/** One line for a pipe: the sums, and what is most remarkable. */
export function lineOfTop(view: TopView): string {
  const { disks, rings } = sorted(view, "load");
  const sum = (values: readonly number[]): number => values.reduce((all, value) => all + value, 0);
  const [busiest] = disks;
  const [loudest] = rings;
  const waiting = rings.filter((it) => it.verdict !== "healthy");
  const parts = [
    `${counted(disks.length, "disk")}, ${count(sum(disks.map(iopsOf)))} IOPS, ` +
      `${mebibytes(sum(disks.map((it) => it.readBytes + it.writeBytes)))} MiB/s`,
    busiest === undefined || iopsOf(busiest) < 0.5
      ? ""
      : `busiest ${busiest.domid}/${busiest.vdev} ${count(iopsOf(busiest))} IOPS, 99 % ${latency(busiest.p99Us)}`,
    `${counted(rings.length, "ring")}, ${count(sum(rings.map((it) => it.requests)))} req/s`,
    loudest === undefined || loudest.requests < 0.5
      ? ""
      : `loudest ${nameOf(loudest)} ${count(loudest.requests)} req/s, ${mostlyText(loudest)}`,
    waiting.length === 0
      ? ""
      : `waiting: ${waiting.map((it) => `${nameOf(it)}: ${waitText(it)}`).join(", ")}`,
    ...view.notes.map((note) => escapeText(note, 300)),
  ];
  const time = view.time.toTimeString().slice(0, 8);
  return `${time}  ${parts.filter((part) => part !== "").join("; ")}`;
}

function nameOf({ domid, name }: RingRow): string {
  return name === null ? `domain ${domid}` : `domain ${domid} (${escapeText(name, 60)})`;
}
