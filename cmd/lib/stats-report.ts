// The statistics of disks on a terminal: what `blkback stats` prints.
import { metricsText } from "../../src/blkback/metrics.ts";
import { REFUSALS } from "../../src/blkback/refusals.ts";
import {
  imageErrors,
  readAllStats,
  statsDir,
  type DeviceStats,
  type Latency,
} from "../../src/blkback/stats.ts";
import { XentoolError } from "../../src/core/errors.ts";
import type { Domid } from "../../src/core/types.ts";
import { isDomainUnknown, noDomain } from "../../src/platform/domains.ts";
import { choosePlatform } from "../../src/platform/open.ts";
import { parseVdev, vdevName } from "../../src/protocol/blkif.ts";
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

const BAR_WIDTH = 24;
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
  if (!(interval >= 0.1 && interval <= 86_400))
    throw new XentoolError("usage", `--interval must be a number from 0.1 to 86400, not ${interval}`);
  if (prometheus && (watch || context.json))
    throw new XentoolError("usage", "--prometheus is a format of its own, and is printed once");
  const guest = selection.domid === undefined ? undefined : parseDomain(selection.domid, "--domid");
  const platform = await choosePlatform({ platform: context.platform });
  try {
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
    if (context.json) printJson(all.map(statsForJson));
    else if (all.length === 0) print(nothingServed(domid, vdev));
    else all.forEach((it) => print(formatStats(it)));
  } finally {
    platform.close();
  }
}

function nothingServed(domid: Domid | undefined, vdev: string | undefined): string {
  if (domid === undefined && vdev === undefined) return "nothing is served here";
  const disk = vdev === undefined ? "disk" : `disk ${vdev}`;
  return `no ${disk}${domid === undefined ? "" : ` of domain ${domid}`} is served here`;
}

/** The full statistics of one device. */
export function formatStats(stats: DeviceStats): string {
  const served = formatDuration((Date.now() - stats.startedAtMs) * 1e6);
  const state = stats.alive
    ? `served for ${served} by process ${stats.pid}`
    : `its server, process ${stats.pid}, is dead`;
  return [
    paint("bold", `${vdevName(stats.devid)} of domain ${stats.domid}`) + `: ${stats.state}, ${state}`,
    indent(trafficTable(stats)),
    ...[...ringFacts(stats), ...limitFacts(stats), ...troubleFacts(stats)].map(indent),
    ...formatHistogram("requests found on the ring", stats.ringUtilisation, stats.ringSlots),
    ...formatHistogram("segments per request", stats.segmentsPerRequest, Infinity),
    "",
  ].join("\n");
}

function trafficTable(stats: DeviceStats): string {
  const rows = [
    ["reads", stats.reads, stats.readBytes, stats.readLatency],
    ["writes", stats.writes + stats.barriers, stats.writeBytes, stats.writeLatency],
    ["flushes", stats.flushes, undefined, stats.flushLatency],
    ["discards", stats.discards, stats.discardBytes, stats.discardLatency],
  ] as const;
  return formatTable(
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
function troubleFacts(stats: DeviceStats): string[] {
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
      `waits for its server, for ${formatDuration((Date.now() - stats.serverLostAtMs) * 1e6)} now; \`blkback list\` shows why`,
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
