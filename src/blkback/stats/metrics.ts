// The statistics of disks in Prometheus' text format (version 0.0.4), with names by its conventions: base units, and
// counters that end in _total. https://prometheus.io/docs/instrumenting/exposition_formats
import { vdevName } from "../../protocol/blkif.ts";
import type { Rate } from "../limits/rates.ts";
import type { DeviceStats, Latency } from "./stats.ts";

type Labels = Readonly<Record<string, string>>;

interface Sample {
  readonly labels: Labels;
  readonly value: number;
  /** Follows the family's name: a histogram's `_bucket`, `_sum` and `_count`. */
  readonly suffix?: string;
}

/** All samples of one name. */
interface Family {
  readonly name: string;
  readonly type: "counter" | "gauge" | "histogram";
  readonly help: string;
  /** A number alone is the one sample of the disk. */
  readonly read: (stats: DeviceStats) => number | readonly Sample[];
}

/** Buckets from 2^4 µs to 2^24 µs (16.8 s). What is faster counts in the first, what is slower in +Inf. */
const FIRST_BUCKET = 4;
const LAST_BUCKET = 24;

/** A sample for each value of `label`. */
function each(label: string, values: Readonly<Record<string, number>>): Sample[] {
  return Object.entries(values).map(([name, value]) => ({ labels: { [label]: name }, value }));
}

/** The limits that there are. */
function limits({ total: all, read, write }: Rate): Sample[] {
  return each("direction", { all, read, write }).filter(({ value }) => value !== 0);
}

function latencySamples(operation: string, { buckets }: Latency, totalMs: number): Sample[] {
  const samples: Sample[] = [];
  let count = 0;
  for (let bucket = 0; bucket <= LAST_BUCKET; bucket++) {
    count += buckets[bucket] ?? 0;
    if (bucket < FIRST_BUCKET) continue;
    const le = String(2 ** bucket / 1e6);
    samples.push({ labels: { operation, le }, value: count, suffix: "_bucket" });
  }
  const all = buckets.reduce((sum, each) => sum + each, 0);
  return [
    ...samples,
    { labels: { operation, le: "+Inf" }, value: all, suffix: "_bucket" },
    { labels: { operation }, value: totalMs / 1000, suffix: "_sum" },
    { labels: { operation }, value: all, suffix: "_count" },
  ];
}

function counter(name: string, help: string, read: Family["read"]): Family {
  return { name: `${name}_total`, type: "counter", help, read };
}

function gauge(name: string, help: string, read: Family["read"]): Family {
  return { name, type: "gauge", help, read };
}

const FAMILIES: readonly Family[] = [
  gauge("up", "Whether the process that serves the disk is alive.", (it) => Number(it.alive)),
  gauge("connected", "Whether a guest is connected.", (it) => Number(it.state === "Connected")),
  gauge("start_time_seconds", "When the disk's server started, since 1970.", (it) => it.startedAtMs / 1000),
  gauge(
    "last_response_timestamp_seconds",
    "When the guest last got a response, since 1970.",
    (it) => it.lastAnswerAtMs / 1000,
  ),
  gauge("ring_slots", "How many requests the ring holds.", (it) => it.ringSlots),
  gauge("requests_in_flight", "Requests taken from the guest and not answered.", (it) => it.inFlight),
  gauge("requests_waiting", "Requests in flight that have not started.", (it) => it.waiting),
  gauge("requests_held", "Requests in flight that the disk's limits hold back.", (it) => it.held),
  gauge("flush_failed", "Whether a flush failed, so that writes fail until the guest reconnects.", (it) =>
    Number(it.flushFailure !== null),
  ),
  gauge("server_lost", "Whether the disk waits for the NBD server that has its image.", (it) =>
    Number(it.serverLostAtMs > 0),
  ),
  gauge("limit_requests_per_second", "The disk's limit on requests.", (it) => limits(it.limits.iops)),
  gauge("limit_bytes_per_second", "The disk's limit on bytes.", (it) => limits(it.limits.bandwidth)),
  counter("requests", "Requests carried out.", (it) =>
    each("operation", {
      read: it.reads,
      write: it.writes,
      flush: it.flushes,
      barrier: it.barriers,
      discard: it.discards,
    }),
  ),
  counter("bytes", "Bytes read, written and discarded.", (it) =>
    each("operation", { read: it.readBytes, write: it.writeBytes, discard: it.discardBytes }),
  ),
  counter("errors", "Requests that were not carried out, by the reason.", (it) => each("reason", it.refused)),
  counter("image_errors", "Operations that the image failed.", (it) =>
    each("operation", {
      read: it.readErrors,
      write: it.writeErrors,
      flush: it.flushErrors,
      discard: it.discardErrors,
    }),
  ),
  {
    name: "latency_seconds",
    type: "histogram",
    help: "From taking a request off the ring to its response; write includes barriers.",
    read: (it) => [
      ...latencySamples("read", it.readLatency, it.readMs),
      ...latencySamples("write", it.writeLatency, it.writeMs),
      ...latencySamples("flush", it.flushLatency, it.flushMs),
      ...latencySamples("discard", it.discardLatency, it.discardMs),
    ],
  },
  counter("stalls", "Requests that took a second or more, limits not counted.", (it) => it.stalls),
  counter("connections", "How often a guest connected to this server.", (it) => it.connections),
  counter(
    "server_losses",
    "How often the NBD server that has the disk's image was lost.",
    (it) => it.serverLosses,
  ),
  counter("throttled_requests", "Requests that limits held back.", (it) => it.throttled),
  counter("throttled_seconds", "How long limits held requests back.", (it) => it.throttledMs / 1000),
  counter("merged_requests", "Requests merged into a neighbour's operation.", (it) => it.merged),
  counter("wakeups", "How often an event of the guest woke the server.", (it) => it.wakeups),
  counter("notifications", "How often the guest was notified.", (it) => it.notifies),
];

/** The metrics of `disks`, as one text. */
export function metricsText(disks: readonly DeviceStats[]): string {
  const lines: string[] = [];
  for (const { name, type, help, read } of FAMILIES) {
    const full = `xentool_blkback_${name}`;
    const own = disks.flatMap((stats) => {
      const found = read(stats);
      const samples: readonly Sample[] = typeof found === "number" ? [{ labels: {}, value: found }] : found;
      return samples.map(({ labels, value, suffix = "" }) => {
        const all = { domid: String(stats.domid), vdev: vdevName(stats.devid), ...labels };
        const text = Object.entries(all).map(([label, it]) => `${label}="${it}"`);
        return `${full}${suffix}{${text.join(",")}} ${value}`;
      });
    });
    if (own.length > 0) lines.push(`# HELP ${full} ${help}`, `# TYPE ${full} ${type}`, ...own);
  }
  return lines.map((line) => `${line}\n`).join("");
}
