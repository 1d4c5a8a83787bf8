// The statistics of disks on a terminal: what `blkback stats` prints.
import { metricsText } from "../../src/blkback/stats/metrics.ts";
import { REFUSALS } from "../../src/blkback/data-plane/refusals.ts";
import {
  imageErrors,
  readAllStats,
  statsDir,
  type DeviceStats,
  type Latency,
} from "../../src/blkback/stats/stats.ts";
import { listDevices } from "../../src/blkback/device/device-list.ts";
import { XentoolError } from "../../src/core/errors.ts";
import { escapeText } from "../../src/core/log.ts";
import type { Domid } from "../../src/core/types.ts";
import { isDomainUnknown, noDomain } from "../../src/platform/domains.ts";
import { choosePlatform } from "../../src/platform/open.ts";
import type { Platform } from "../../src/platform/platform.ts";
import { parseVdev, vdevName } from "../../src/protocol/blkif.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { findDomain, parseDomain } from "../../src/xenstore/domains.ts";
import {
  formatBytes,
  formatCount,
  formatCounted,
  formatDuration,
  formatTable,
  paint,
  print,
  printJson,
} from "./output.ts";
import { describeRates } from "./rates-report.ts";
import type { CommandContext } from "./run-command.ts";
import { statsForJson, watchStats } from "./stats-watch.ts";
import { terminalSize, wrap } from "./terminal.ts";

/** What a narrow terminal does without in the table, in this order. */
const LEFT_OUT = ["median", "bytes"];
const INDENT = 2;
const BAR_WIDTH = 24;
/** What else is on a bar's line: its label and the spaces; and the count behind it, if it is not large. */
const BESIDE_BAR = 14;
const COUNT_WIDTH = 9;
const BLOCKS = " ▏▎▍▌▋▊▉█";

interface StatsSelection {
  /** A number or a name. */
  readonly domid: string | undefined;
  readonly vdev: string | undefined;
  readonly watch: boolean;
  /** Seconds. */
  readonly interval: number;
  readonly prometheus: boolean;
}

/** Prints the statistics of the selected devices, once, or again and again until stopped. */
export async function runStats(selection: StatsSelection, context: CommandContext): Promise<void> {
  const { vdev, watch, interval, prometheus } = selection;
  const devid = vdev === undefined ? undefined : parseVdev(vdev);
  if (vdev !== undefined && devid === undefined)
    throw new XentoolError("usage", `--vdev: "${vdev}" is not a disk name such as xvdb`);
  if (prometheus && (watch || context.json))
    throw new XentoolError("usage", "--prometheus is a format of its own, and is printed once");
  const guest = selection.domid === undefined ? undefined : parseDomain(selection.domid, "--domid");
  using platform = await choosePlatform({ platform: context.platform });
  const domid = guest === undefined ? undefined : await findDomain(platform, guest, context.timeoutMs);
  const dir = statsDir(platform.descriptor);
  const read = (): DeviceStats[] =>
    readAllStats(dir).filter(
      (it) => (domid === undefined || it.domid === domid) && (devid === undefined || it.devid === devid),
    );
  if (watch) return await watchStats(read, interval * 1000, context);
  const all = read();
  // Metrics of a guest that is gone are none; whoever collects them need not know when that was.
  if (prometheus) return void process.stdout.write(metricsText(all));
  if (all.length === 0 && domid !== undefined && isDomainUnknown(platform, domid)) throw noDomain(domid);
  const whys = await whyHeld(platform, all, context.timeoutMs);
  if (context.json) printJson(all.map((it, at) => ({ ...statsForJson(it), serverFailure: whys[at] })));
  else if (all.length === 0) print(nothingServed(domid, vdev));
  else all.forEach((it, at) => print(formatStats(it, terminalSize()?.width, whys[at])));
}

/** Of each disk, why it waits for its server, or null. Only xenstore knows; without it, the numbers are shown alone. */
async function whyHeld(
  platform: Platform,
  all: readonly DeviceStats[],
  timeoutMs?: number,
): Promise<(string | null)[]> {
  const isHeld = (it: DeviceStats): boolean => it.alive && it.serverLostAtMs > 0;
  if (!all.some(isHeld)) return all.map(() => null);
  try {
    using xenstore = await Xenstore.connect(platform, { timeoutMs });
    const listed = await listDevices(xenstore, platform.domid, all);
    const problemOf = ({ domid, devid }: DeviceStats): string | null =>
      listed.find((it) => it.frontend === domid && it.devid === devid)?.problem ?? null;
    return all.map((it) => (isHeld(it) ? problemOf(it) : null));
  } catch (error) {
    if (error instanceof XentoolError) return all.map(() => null);
    throw error;
  }
}

function nothingServed(domid: Domid | undefined, vdev: string | undefined): string {
  if (domid === undefined && vdev === undefined) return "nothing is served here";
  const disk = vdev === undefined ? "disk" : `disk ${vdev}`;
  return `no ${disk}${domid === undefined ? "" : ` of domain ${domid}`} is served here`;
}

/**
 * The full statistics of one device, in lines of at most `width` columns, unless the table needs more. `why`: why it
 * waits for its server, if that is known.
 */
export function formatStats(stats: DeviceStats, width = Infinity, why: string | null = null): string {
  const served = formatDuration((Date.now() - stats.startedAtMs) * 1e6);
  const state = stats.alive
    ? `served for ${served} by process ${stats.pid}`
    : `its server, process ${stats.pid}, is dead`;
  const facts = [...ringFacts(stats), ...limitFacts(stats), ...troubleFacts(stats, why)].map(indent);
  const name = `${vdevName(stats.devid)} of domain ${stats.domid}`;
  const head = wrap(`${name}: ${stats.state}, ${state}`, width).join("\n");
  return [
    head.replace(name, paint("bold", name)),
    indent(trafficTable(stats, width - INDENT)),
    ...facts.flatMap((fact) => wrap(fact, width)),
    ...formatHistogram("requests found on the ring", stats.ringUtilisation, stats.ringSlots, width),
    ...formatHistogram("segments per request", stats.segmentsPerRequest, Infinity, width),
    "",
  ].join("\n");
}

function trafficTable(stats: DeviceStats, width: number): string {
  const rows = [
    ["reads", stats.reads, stats.readBytes, stats.readLatency],
    ["writes", stats.writes + stats.barriers, stats.writeBytes, stats.writeLatency],
    ["flushes", stats.flushes, undefined, stats.flushLatency],
    ["discards", stats.discards, stats.discardBytes, stats.discardLatency],
  ] as const;
  const columns: Readonly<Record<string, readonly string[]>> = {
    "": rows.map(([name]) => name),
    requests: rows.map(([, count]) => formatCount(count)),
    bytes: rows.map(([, , bytes]) => (bytes === undefined ? "" : formatBytes(bytes))),
    median: rows.map(([, , , latency]) => formatLatency(latency.medianUs, latency)),
    "99 %": rows.map(([, , , latency]) => formatLatency(latency.p99Us, latency)),
  };
  let titles = Object.keys(columns);
  const draw = (): string =>
    formatTable(
      titles.map((title) => ({ title, align: title === "" ? "left" : "right" })),
      rows.map((_, row) => titles.map((title) => columns[title]?.[row] ?? "")),
    );
  const isTooWide = (): boolean =>
    draw()
      .split("\n")
      .some((line) => Bun.stringWidth(line) > width);
  for (const title of LEFT_OUT) if (isTooWide()) titles = titles.filter((it) => it !== title);
  return draw();
}

/** What happened on the rings. */
function ringFacts(stats: DeviceStats): string[] {
  const perBatch = stats.batches === 0 ? 0 : stats.requests / stats.batches;
  const facts = [
    `${formatCounted(stats.requests, "request")}, ${formatCounted(stats.errors, "error")}, ${formatCount(stats.merged)} merged, ${formatCount(stats.indirect)} indirect`,
    `${formatCounted(stats.batches, "batch", "batches")} of ${perBatch.toFixed(1)} on average, ${formatCounted(stats.notifies, "notification")}, ${formatCounted(stats.wakeups, "wake-up")}`,
    ...queueFacts(stats),
  ];
  if (stats.inFlight > 0)
    facts.push(
      `${formatCounted(stats.inFlight, "request")} in flight, ${formatCount(stats.waiting)} of them not started yet`,
    );
  if (stats.stalls > 0) facts.push(`${formatCounted(stats.stalls, "request")} took a second or more`);
  return facts;
}

/** What went wrong, and what is wrong now. */
function troubleFacts(stats: DeviceStats, why: string | null): string[] {
  const facts: string[] = [];
  const refused = REFUSALS.filter(({ name }) => stats.refused[name] > 0);
  if (refused.length > 0)
    facts.push(
      "refused: " +
        refused.map(({ name, words }) => `${formatCount(stats.refused[name])} ${words}`).join("; "),
    );
  const ioErrors = imageErrors(stats);
  if (ioErrors > 0)
    facts.push(
      `the image failed ${formatCounted(stats.readErrors, "read")}, ${formatCounted(stats.writeErrors, "write")}, ` +
        `${formatCounted(stats.flushErrors, "flush", "flushes")}, ${formatCounted(stats.discardErrors, "discard")}, last with ${stats.lastIoError}`,
    );
  if (stats.serverLostAtMs > 0)
    facts.push(
      `waits for its server, for ${formatDuration((Date.now() - stats.serverLostAtMs) * 1e6)} now` +
        (why === null ? "; `blkback list` shows why" : `: ${escapeText(why, 300)}`),
    );
  if (stats.serverLosses > 0) facts.push(`its server was lost ${formatCounted(stats.serverLosses, "time")}`);
  if (stats.flushFailure !== null)
    facts.push(
      `a flush failed with ${stats.flushFailure}: writes and flushes fail until the guest reconnects`,
    );
  return facts;
}

/** A line for each queue, unless there is only one. */
function queueFacts({ queues }: DeviceStats): string[] {
  if (queues.length < 2) return [];
  return queues.map(
    (it, index) =>
      `queue ${index}: ${formatCounted(it.requests, "request")}, ${formatBytes(it.readBytes)} read, ` +
      `${formatBytes(it.writeBytes)} written, ${formatCount(it.inFlight)} in flight`,
  );
}

function limitFacts({ limits, throttled, throttledMs, held }: DeviceStats): string[] {
  const rates = describeRates(limits);
  const facts = rates === "" ? [] : [`limited to ${rates}`];
  if (throttled + held > 0)
    facts.push(
      `limits held back ${formatCounted(throttled, "request")}, ` +
        `for ${formatDuration((throttledMs / Math.max(1, throttled)) * 1e6)} on average; ${formatCount(held)} now`,
    );
  return facts;
}

function formatLatency(us: number, latency: Latency): string {
  return latency.buckets.length === 0 ? "" : `≤ ${formatDuration(us * 1000)}`;
}

/** Buckets by powers of two, as bars; one ends at `limit`, which an earlier and longer ring may have exceeded. */
function formatHistogram(title: string, counts: readonly number[], limit: number, width: number): string[] {
  const buckets: { label: string; count: number }[] = [];
  const next = (to: number): number => (to <= limit ? Math.min(to * 2, limit + 1) : to * 2);
  for (let from = 0, to = 1; from < counts.length; from = to, to = next(to)) {
    const count = counts.slice(from, to).reduce((sum, it) => sum + it, 0);
    buckets.push({ label: to - from === 1 ? String(from) : `${from}-${to - 1}`, count });
  }
  const first = buckets.findIndex(({ count }) => count > 0);
  if (first < 0) return [];
  const most = Math.max(...buckets.map(({ count }) => count));
  const barWidth = Math.max(1, Math.min(BAR_WIDTH, width - BESIDE_BAR - COUNT_WIDTH));
  const rows = buckets
    .slice(first)
    .map(({ label, count }) => `${label.padStart(9)}  ${bar(count / most, barWidth)} ${formatCount(count)}`);
  return [indent(paint("dim", title)), ...rows.map(indent)];
}

function bar(share: number, width: number): string {
  const eighths = Math.round(share * width * 8);
  const full = Math.floor(eighths / 8);
  const rest = eighths % 8 === 0 ? "" : BLOCKS[eighths % 8];
  return ("█".repeat(full) + rest).padEnd(width);
}

function indent(text: string): string {
  return text.replace(/^/gm, " ".repeat(INDENT));
}
