// How devices and their statistics are shown on a terminal.
import { pause } from "../../src/core/deadline.ts";
import { describeDevice, type DeviceAddress } from "../../src/blkback/address.ts";
import { REFUSALS } from "../../src/blkback/refusals.ts";
import { describeResize, type Resize } from "../../src/blkback/resize.ts";
import type { DeviceStats, Latency } from "../../src/blkback/stats.ts";
import { readAllStats, statsDir } from "../../src/blkback/stats.ts";
import type { ListedDevice } from "../../src/blkback/toolstack.ts";
import { escapeText } from "../../src/core/log.ts";
import { EXIT_CODE, XentoolError } from "../../src/core/errors.ts";
import type { Platform } from "../../src/platform/platform.ts";
import { parseVdev, vdevName } from "../../src/protocol/blkif.ts";
import { formatBytes, formatCount, formatDuration, formatTable, paint, print, printJson } from "./output.ts";
import type { CommandContext } from "./run-command.ts";

const WATCH_INTERVAL_MS = 1000;
const BAR_WIDTH = 24;
const BLOCKS = " ▏▎▍▌▋▊▉█";

/** Prints the devices, each with the I/O errors in its statistics if a process on this host serves it. */
export function printDevices(platform: Platform, listed: readonly ListedDevice[], json: boolean): void {
  const served = readAllStats(statsDir(platform.descriptor)).filter((it) => it.alive);
  const devices = listed.map((it) => {
    const stats = served.find(({ domid, devid }) => domid === it.frontend && devid === it.devid);
    const ioErrors = stats === undefined ? null : countIoErrors(stats);
    return {
      ...it,
      ioErrors,
      lastIoError: stats?.lastIoError ?? null,
      flushFailure: stats?.flushFailure ?? null,
    };
  });
  if (json) {
    printJson(devices);
    return;
  }
  if (devices.length === 0) {
    print("no block devices");
    return;
  }
  const columns = [
    "domain",
    "vdev",
    "kind",
    "backend",
    "frontend",
    "mode",
    "size",
    "I/O errors",
    "image",
  ].map((title) => ({
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
    it.ioErrors === null || it.ioErrors === 0
      ? ""
      : `${formatCount(it.ioErrors)} (${it.flushFailure === null ? it.lastIoError : `flush: ${it.flushFailure}`})`,
    escapeText(it.params, 60),
  ]);
  print(formatTable(columns, rows));
}

function countIoErrors(stats: DeviceStats): number {
  return stats.readErrors + stats.writeErrors + stats.flushErrors + stats.discardErrors;
}

/**
 * Reports the result of a resize; anything the guest may miss is a warning on stderr. Returns the exit status: that of
 * `io` when the disk could not take its image's size.
 */
export function printResize(address: DeviceAddress, { before, after }: Resize, json: boolean): number {
  const { text, warns, applied } = describeResize({ before, after });
  const device = { domid: address.frontend, vdev: vdevName(address.devid) };
  if (json)
    printJson({
      ...device,
      sectorsBefore: before,
      sectorsOfImage: after,
      applied,
      warning: warns ? text : null,
    });
  else if (!warns) print(`${describeDevice(address)}: ${text}`);
  if (warns) process.stderr.write(`xentool: warning: ${describeDevice(address)}: ${text}\n`);
  return applied ? 0 : EXIT_CODE.io;
}

interface StatsSelection {
  readonly domid: number | undefined;
  readonly vdev: string | undefined;
  readonly watch: boolean;
}

/** Prints the statistics of the selected devices, once, or every second until stopped. */
export async function showStats(
  platform: Platform,
  selection: StatsSelection,
  context: CommandContext,
): Promise<void> {
  const dir = statsDir(platform.descriptor);
  const devid = selection.vdev === undefined ? undefined : parseVdev(selection.vdev);
  if (selection.vdev !== undefined && devid === undefined)
    throw new XentoolError("usage", `--vdev: "${selection.vdev}" is not a disk name such as xvdb`);
  const read = (): DeviceStats[] =>
    readAllStats(dir).filter(
      (it) =>
        (selection.domid === undefined || it.domid === selection.domid) &&
        (devid === undefined || it.devid === devid),
    );
  if (!selection.watch) {
    const all = read();
    if (context.json) printJson(all);
    else if (all.length === 0) print(nothingServed(selection));
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
    await pause(WATCH_INTERVAL_MS, stop);
  }
}

function nothingServed({ domid, vdev }: StatsSelection): string {
  if (domid === undefined && vdev === undefined) return "nothing is served here";
  const disk = vdev === undefined ? "disk" : `disk ${vdev}`;
  return `no ${disk}${domid === undefined ? "" : ` of domain ${domid}`} is served here`;
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
    `errors ${now.errors}, of the image ${countIoErrors(now)}`,
  ];
  return cells.join("  ");
}

/** The full statistics of one device. */
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
  const refused = REFUSALS.filter(({ name }) => stats.refused[name] > 0);
  if (refused.length > 0)
    facts.push(
      "refused: " +
        refused.map(({ name, words }) => `${formatCount(stats.refused[name])} ${words}`).join("; "),
    );
  const ioErrors = countIoErrors(stats);
  if (ioErrors > 0)
    facts.push(
      `the image failed ${formatCount(stats.readErrors)} reads, ${formatCount(stats.writeErrors)} writes, ` +
        `${formatCount(stats.flushErrors)} flushes, ${formatCount(stats.discardErrors)} discards, last with ${stats.lastIoError}`,
    );
  if (stats.flushFailure !== null)
    facts.push(
      `a flush failed with ${stats.flushFailure}: writes and flushes fail until the guest reconnects`,
    );
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
  const rest = eighths % 8 === 0 ? "" : BLOCKS[eighths % 8];
  return ("█".repeat(full) + rest).padEnd(BAR_WIDTH);
}

function indent(text: string): string {
  return text.replace(/^/gm, "  ");
}
