// How devices and their statistics look on a terminal.
import { setTimeout as delay } from "node:timers/promises";
import type { DeviceStats, Latency } from "../../src/blkback/stats.ts";
import { readAllStats, statsDir } from "../../src/blkback/stats.ts";
import type { ListedDevice } from "../../src/blkback/toolstack.ts";
import { escapeText } from "../../src/core/log.ts";
import { XentoolError } from "../../src/core/errors.ts";
import type { Platform } from "../../src/platform/platform.ts";
import { parseVdev, vdevName } from "../../src/protocol/blkif.ts";
import { formatBytes, formatCount, formatDuration, formatTable, paint, print, printJson } from "./output.ts";
import type { CommandContext } from "./run-command.ts";

const WATCH_INTERVAL_MS = 1000;
const BAR_WIDTH = 24;
const BLOCKS = " ▏▎▍▌▋▊▉█";

export function printDevices(devices: readonly ListedDevice[], json: boolean): void {
  if (json) {
    printJson(devices);
    return;
  }
  if (devices.length === 0) {
    print("no block devices");
    return;
  }
  const columns = ["domain", "vdev", "kind", "backend", "frontend", "mode", "size", "image"].map((title) => ({
    title,
  }));
  const rows = devices.map((it) => [
    String(it.frontend),
    it.vdev,
    it.kind,
    it.backendState + (it.online ? "" : " (going)"),
    it.frontendState,
    escapeText(it.mode, 8),
    it.sectors512 === undefined ? "" : formatBytes(it.sectors512 * 512),
    escapeText(it.params, 60),
  ]);
  print(formatTable(columns, rows));
}

interface StatsSelection {
  readonly domid: number | undefined;
  readonly vdev: string | undefined;
  readonly watch: boolean;
}

/** Prints the statistics of the selected devices, once or every second until stopped. */
export async function showStats(
  platform: Platform,
  selection: StatsSelection,
  context: CommandContext,
): Promise<void> {
  const dir = statsDir(platform.descriptor);
  const devid = selection.vdev === undefined ? undefined : parseVdev(selection.vdev);
  if (selection.vdev !== undefined && devid === undefined)
    throw new XentoolError("usage", `--vdev: "${selection.vdev}" is no virtual device; try xvdb`);
  const read = (): DeviceStats[] =>
    readAllStats(dir).filter(
      (it) =>
        (selection.domid === undefined || it.domid === selection.domid) &&
        (devid === undefined || it.devid === devid),
    );
  if (!selection.watch) {
    const all = read();
    if (context.json) printJson(all);
    else if (all.length === 0) print("nothing is served here");
    else all.forEach((it) => print(formatStats(it)));
    return;
  }
  const { stop } = context;
  for (let before = new Map<string, DeviceStats>(); !stop.aborted;) {
    const all = read();
    for (const now of all) {
      if (context.json) printJson({ time: Date.now(), ...now }, true);
      else print(formatRates(before.get(keyOf(now)), now));
    }
    before = new Map(all.map((it) => [keyOf(it), it]));
    await delay(WATCH_INTERVAL_MS, undefined, { signal: stop }).catch(() => {});
  }
}

function keyOf(stats: DeviceStats): string {
  return `${stats.domid}/${stats.devid}/${stats.startedAtMs}`;
}

/** One line: what happened in the last second. */
function formatRates(before: DeviceStats | undefined, now: DeviceStats): string {
  const since = (field: "reads" | "writes" | "readBytes" | "writeBytes" | "flushes"): number =>
    now[field] - (before?.[field] ?? now[field]);
  const cells = [
    `${vdevName(now.devid)}/dom${now.domid}`.padEnd(12),
    `r ${formatCount(since("reads")).padStart(8)}/s ${formatBytes(since("readBytes")).padStart(9)}/s`,
    `w ${formatCount(since("writes")).padStart(8)}/s ${formatBytes(since("writeBytes")).padStart(9)}/s`,
    `flush ${since("flushes")}/s`,
    `errors ${now.errors}`,
  ];
  return cells.join("  ");
}

/** The whole story of one device. */
export function formatStats(stats: DeviceStats): string {
  const served = formatDuration((Date.now() - stats.startedAtMs) * 1e6);
  const state = stats.alive
    ? `served for ${served} by process ${stats.pid}`
    : `its server, process ${stats.pid}, is dead`;
  const perBatch = stats.batches === 0 ? 0 : stats.requests / stats.batches;
  const rows = [
    ["reads", stats.reads, stats.readBytes, stats.readLatency],
    ["writes", stats.writes + stats.barriers, stats.writeBytes, stats.writeLatency],
    ["flushes", stats.flushes, undefined, stats.flushLatency],
    ["discards", stats.discards, stats.discardBytes, stats.discardLatency],
  ] as const;
  const table = formatTable(
    [
      { title: "" },
      { title: "requests", align: "right" },
      { title: "bytes", align: "right" },
      { title: "median", align: "right" },
      { title: "99 %", align: "right" },
    ],
    rows.map(([name, count, bytes, latency]) => [
      name,
      formatCount(count),
      bytes === undefined ? "" : formatBytes(bytes),
      formatLatency(latency.medianUs, latency),
      formatLatency(latency.p99Us, latency),
    ]),
  );
  const facts = [
    `${formatCount(stats.requests)} requests, ${formatCount(stats.errors)} errors, ${formatCount(stats.merged)} merged, ${formatCount(stats.indirect)} indirect`,
    `${formatCount(stats.batches)} batches of ${perBatch.toFixed(1)} on average, ${formatCount(stats.notifies)} notifications, ${formatCount(stats.wakeups)} wake-ups`,
  ];
  return [
    paint("bold", `${vdevName(stats.devid)} of domain ${stats.domid}`) + `: ${state}`,
    indent(table),
    ...facts.map(indent),
    ...formatHistogram("requests found on the ring", stats.ringUtilisation, stats.ringSlots),
    ...formatHistogram("segments per request", stats.segmentsPerRequest, Infinity),
    "",
  ].join("\n");
}

function formatLatency(us: number, latency: Latency): string {
  return latency.buckets.length === 0 ? "" : `≤ ${formatDuration(us * 1000)}`;
}

/** Buckets by powers of two, as bars. */
function formatHistogram(title: string, counts: readonly number[], limit: number): string[] {
  const buckets: { label: string; count: number }[] = [];
  for (let from = 0, to = 1; from < counts.length; from = to, to = Math.min(to * 2, limit + 1)) {
    const count = counts.slice(from, to).reduce((sum, it) => sum + it, 0);
    buckets.push({ label: to - from === 1 ? String(from) : `${from}-${to - 1}`, count });
    if (to === limit + 1 && to >= counts.length) break;
  }
  const first = buckets.findIndex(({ count }) => count > 0);
  if (first < 0) return [];
  const most = Math.max(...buckets.map(({ count }) => count));
  const rows = buckets
    .slice(first)
    .map(({ label, count }) => `${label.padStart(9)}  ${bar(count / most)} ${formatCount(count)}`);
  return [indent(paint("dim", title)), ...rows.map(indent)];
}

function bar(share: number): string {
  const eighths = Math.round(share * BAR_WIDTH * 8);
  const full = Math.floor(eighths / 8);
  const rest = eighths % 8 === 0 ? "" : (BLOCKS[eighths % 8] as string);
  return ("█".repeat(full) + rest).padEnd(BAR_WIDTH);
}

function indent(text: string): string {
  return text.replace(/^/gm, "  ");
}
