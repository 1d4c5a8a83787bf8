// The statistics of disks in Prometheus' text format (version 0.0.4), with names by its conventions: base units, and
// counters that end in _total. https://prometheus.io/docs/instrumenting/exposition_formats
import { vdevName } from "../protocol/blkif.ts";
import type { Rate } from "./rates.ts";
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
  readonly samples: (stats: DeviceStats) => readonly Sample[];
}

/** Buckets from 2^4 µs to 2^24 µs (16.8 s). What is faster counts in the first, what is slower in +Inf. */
const FIRST_BUCKET = 4;
const LAST_BUCKET = 24;

function one(read: (stats: DeviceStats) => number): Family["samples"] {
  return (stats) => [{ labels: {}, value: read(stats) }];
}

/** A sample for each value of `label`. */
function each(
  label: string,
  read: (stats: DeviceStats) => Readonly<Record<string, number>>,
): Family["samples"] {
  return (stats) =>
    Object.entries(read(stats)).map(([name, value]) => ({ labels: { [label]: name }, value }));
}

/** The limits that there are. */
function limits(read: (stats: DeviceStats) => Rate): Family["samples"] {
  return (stats) => {
    const { total, read: reads, write: writes } = read(stats);
    return Object.entries({ all: total, read: reads, write: writes })
      .filter(([, value]) => value !== 0)
      .map(([direction, value]) => ({ labels: { direction }, value }));
  };
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

function counter(name: string, help: string, samples: Family["samples"]): Family {
  return { name: `${name}_total`, type: "counter", help, samples };
}

function gauge(name: string, help: string, samples: Family["samples"]): Family {
  return { name, type: "gauge", help, samples };
}

const FAMILIES: readonly Family[] = [
  gauge(
    "up",
    "Whether the process that serves the disk is alive.",
    one((it) => Number(it.alive)),
  ),
  gauge(
    "connected",
    "Whether a guest is connected.",
    one((it) => Number(it.state === "Connected")),
  ),
  gauge(
    "start_time_seconds",
    "When the disk's server started, since 1970.",
    one((it) => it.startedAtMs / 1000),
  ),
  gauge(
    "last_response_timestamp_seconds",
    "When the guest last got a response, since 1970.",
    one((it) => it.lastAnswerAtMs / 1000),
  ),
  gauge(
    "ring_slots",
    "How many requests the ring holds.",
    one((it) => it.ringSlots),
  ),
  gauge(
    "requests_in_flight",
    "Requests taken from the guest and not answered.",
    one((it) => it.inFlight),
  ),
  gauge(
    "requests_waiting",
    "Requests in flight that have not started.",
    one((it) => it.waiting),
  ),
  gauge(
    "requests_held",
    "Requests in flight that the disk's limits hold back.",
    one((it) => it.held),
  ),
  gauge(
    "flush_failed",
    "Whether a flush failed, so that writes fail until the guest reconnects.",
    one((it) => Number(it.flushFailure !== null)),
  ),
  gauge(
    "server_lost",
    "Whether the disk waits for the NBD server that has its image.",
    one((it) => Number(it.serverLostAtMs > 0)),
  ),
  gauge(
    "limit_requests_per_second",
    "The disk's limit on requests.",
    limits((it) => it.limits.iops),
  ),
  gauge(
    "limit_bytes_per_second",
    "The disk's limit on bytes.",
    limits((it) => it.limits.bandwidth),
  ),
  counter(
    "requests",
    "Requests carried out.",
    each(
      "operation",
      ({ reads: read, writes: write, flushes: flush, barriers: barrier, discards: discard }) => ({
        read,
        write,
        flush,
        barrier,
        discard,
      }),
    ),
  ),
  counter(
    "bytes",
    "Bytes read, written and discarded.",
    each("operation", ({ readBytes: read, writeBytes: write, discardBytes: discard }) => ({
      read,
      write,
      discard,
    })),
  ),
  counter(
    "errors",
    "Requests that were not carried out, by the reason.",
    each("reason", (it) => it.refused),
  ),
  counter(
    "image_errors",
    "Operations that the image failed.",
    each(
      "operation",
      ({ readErrors: read, writeErrors: write, flushErrors: flush, discardErrors: discard }) => ({
        read,
        write,
        flush,
        discard,
      }),
    ),
  ),
  {
    name: "latency_seconds",
    type: "histogram",
    help: "From taking a request off the ring to its response; write includes barriers.",
    samples: (it) => [
      ...latencySamples("read", it.readLatency, it.readMs),
      ...latencySamples("write", it.writeLatency, it.writeMs),
      ...latencySamples("flush", it.flushLatency, it.flushMs),
      ...latencySamples("discard", it.discardLatency, it.discardMs),
    ],
  },
  counter(
    "stalls",
    "Requests that took a second or more, limits not counted.",
    one((it) => it.stalls),
  ),
  counter(
    "connections",
    "How often a guest connected to this server.",
    one((it) => it.connections),
  ),
  counter(
    "server_losses",
    "How often the NBD server that has the disk's image was lost.",
    one((it) => it.serverLosses),
  ),
  counter(
    "throttled_requests",
    "Requests that limits held back.",
    one((it) => it.throttled),
  ),
  counter(
    "throttled_seconds",
    "How long limits held requests back.",
    one((it) => it.throttledMs / 1000),
  ),
  counter(
    "merged_requests",
    "Requests merged into a neighbour's operation.",
    one((it) => it.merged),
  ),
  counter(
    "wakeups",
    "How often an event of the guest woke the server.",
    one((it) => it.wakeups),
  ),
  counter(
    "notifications",
    "How often the guest was notified.",
    one((it) => it.notifies),
  ),
];

/** The metrics of `disks`, as one text. */
export function metricsText(disks: readonly DeviceStats[]): string {
  const lines: string[] = [];
  for (const { name, type, help, samples } of FAMILIES) {
    const full = `xentool_blkback_${name}`;
    const own = disks.flatMap((stats) =>
      samples(stats).map(({ labels, value, suffix = "" }) => {
        const all = { domid: String(stats.domid), vdev: vdevName(stats.devid), ...labels };
        const text = Object.entries(all).map(([label, it]) => `${label}="${it}"`);
        return `${full}${suffix}{${text.join(",")}} ${value}`;
      }),
    );
    if (own.length > 0) lines.push(`# HELP ${full} ${help}`, `# TYPE ${full} ${type}`, ...own);
  }
  return lines.map((line) => `${line}\n`).join("");
}
