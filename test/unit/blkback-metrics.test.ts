// The metrics, against the grammar of Prometheus' text format and its conventions for names, as `promtool check
// metrics` sees them; and the board in docs/, which may show only what there is.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { metricsText } from "../../src/blkback/stats/metrics.ts";
import { parseRate, UNLIMITED_DISK } from "../../src/blkback/limits/rates.ts";
import { IMAGE_FAILED } from "../../src/blkback/data-plane/refusals.ts";
import {
  latencyBucket,
  READ_LATENCY,
  readAllStats,
  refusalCounter,
  STAT,
  StatsPage,
  type DeviceStats,
} from "../../src/blkback/stats/stats.ts";
import { XenbusState } from "../../src/protocol/xenbus.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const BOARD = new URL("../../docs/grafana-board.json", import.meta.url);
const SAMPLE = /^([a-z_]+)\{((?:[a-z]+="[A-Za-z0-9+.]*",?)+)\} (-?[0-9.e+-]+)$/;

interface Sample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

interface Family {
  readonly name: string;
  readonly type: string;
  readonly help: string;
  readonly samples: readonly Sample[];
}

/** Parses the format strictly: for each name HELP, TYPE, and its samples, all together and only once. */
function parse(text: string): Family[] {
  expect(text.endsWith("\n")).toBe(true);
  const families: (Family & { samples: Sample[] })[] = [];
  let help: RegExpExecArray | null = null;
  for (const line of text.slice(0, -1).split("\n")) {
    const type: RegExpExecArray | null = /^# TYPE (\S+) (counter|gauge|histogram)$/.exec(line);
    if (type !== null) {
      const [, name = "", kind = ""] = type;
      expect(help?.[1]).toBe(name);
      expect(families.map((it) => it.name)).not.toContain(name);
      families.push({ name, type: kind, help: help?.[2] ?? "", samples: [] });
      continue;
    }
    help = /^# HELP (\S+) ([A-Z][^\\]*\.)$/.exec(line);
    if (help !== null) continue;
    const [, name = "", labels = "", value] = SAMPLE.exec(line) ?? [];
    if (value === undefined) throw new Error(`not in the format: ${line}`);
    const family = families.at(-1);
    const suffixes = family?.type === "histogram" ? ["_bucket", "_sum", "_count"] : [""];
    expect(suffixes.map((suffix) => `${family?.name}${suffix}`)).toContain(name);
    const pairs = [...labels.matchAll(/([a-z]+)="([^"]*)"/g)].map(([, label, it]) => [label, it]);
    family?.samples.push({ name, labels: Object.fromEntries(pairs), value: Number(value) });
  }
  return families;
}

let dir: string;
const pages: StatsPage[] = [];

beforeEach(() => {
  dir = temporaryDirectory();
});
afterEach(() => {
  for (const page of pages.splice(0)) page.remove();
  removeDirectory(dir);
});

/** The statistics of a busy disk and an idle one. */
function twoDisks(): DeviceStats[] {
  pages.push(StatsPage.create(dir, 1, 51_728), StatsPage.create(dir, 12, 51_712));
  const [page] = pages as [StatsPage];
  page.state = XenbusState.Connected;
  page.rates = {
    iops: parseRate("iops", "", "read:700,write:300"),
    bandwidth: parseRate("bandwidth", "", "1M"),
  };
  page.counters[STAT.reads] = 6;
  page.counters[STAT.readMs] = 40_001.5;
  page.counters[STAT.serverLosses] = 3;
  page.counters[STAT.serverLostAtMs] = 1_800_000_000_000;
  page.counters[STAT.errors] = page.counters[refusalCounter(IMAGE_FAILED)] = 4;
  // Below 1 µs, up to 64 µs, up to 2 ms, and far more than the last bucket.
  for (const bucket of [0, 6, 6, 11, 31, 31]) page.counters[READ_LATENCY + bucket]++;
  return readAllStats(dir).sort((a, b) => a.domid - b.domid);
}

describe("the metrics", () => {
  test("follow the grammar and the conventions", () => {
    const families = parse(metricsText(twoDisks()));
    expect(families.length).toBeGreaterThan(20);
    for (const { name, type, samples } of families) {
      expect(name).toMatch(/^xentool_blkback_[a-z]+(_[a-z]+)*$/);
      expect(name.endsWith("_total")).toBe(type === "counter");
      // promtool's rules: base units in full, no type in the name, and suffixes only where they mean something.
      expect(name).not.toMatch(
        /_(ns|us|ms|s|sec|min|minutes|hours|days|weeks|milliseconds|microseconds)(_|$)/,
      );
      expect(name).not.toMatch(/_(b|kib|mib|kb|mb|kilobytes|megabytes|bits|percent)(_|$)/);
      expect(name).not.toMatch(/_(counter|gauge|histogram|summary|count|sum|bucket|info)(_|$)/);
      const keys = samples.map((it) => JSON.stringify([it.name, it.labels]));
      expect(new Set(keys).size).toBe(keys.length);
      for (const { labels, value } of samples) {
        expect(["1 xvdb", "12 xvda"]).toContain(`${labels["domid"]} ${labels["vdev"]}`);
        expect(value).toBeGreaterThanOrEqual(0);
        expect("le" in labels).toBe(type === "histogram" && labels["le"] !== undefined);
      }
    }
  });

  test("have the disk's numbers in base units", () => {
    const text = metricsText(twoDisks());
    const disk = 'domid="1",vdev="xvdb"';
    for (const line of [
      `up{${disk}} 1`,
      `connected{${disk}} 1`,
      `connected{domid="12",vdev="xvda"} 0`,
      `server_lost{${disk}} 1`,
      `server_lost{domid="12",vdev="xvda"} 0`,
      `server_losses_total{${disk}} 3`,
      `requests_total{${disk},operation="read"} 6`,
      `errors_total{${disk},reason="imageFailed"} 4`,
      `limit_requests_per_second{${disk},direction="write"} 300`,
      `limit_bytes_per_second{${disk},direction="all"} 1048576`,
      `latency_seconds_sum{${disk},operation="read"} 40.0015`,
    ])
      expect(text).toContain(`xentool_blkback_${line}\n`);
    expect(text).not.toContain('direction="read"} 0');
  });

  test("have latencies as a cumulative histogram, whatever is outside its buckets", () => {
    const family = parse(metricsText(twoDisks())).find((it) => it.name.endsWith("latency_seconds"));
    const of = (suffix: string): Sample[] =>
      (family?.samples ?? []).filter(
        ({ name, labels }) =>
          name.endsWith(suffix) && labels["domid"] === "1" && labels["operation"] === "read",
      );
    const buckets = of("_bucket").map(({ labels, value }) => [
      Number(labels["le"]?.replace("+Inf", "Infinity")),
      value,
    ]);
    expect(buckets.map(([le]) => le)).toEqual(
      buckets.map(([le]) => le).toSorted((a, b) => Number(a) - Number(b)),
    );
    const at = (le: number): number | undefined => buckets.find(([it]) => it === le)?.[1];
    expect([at(16e-6), at(64e-6), at(1024e-6), at(2048e-6), at(Infinity)]).toEqual([1, 3, 3, 4, 6]);
    expect(of("_count").map(({ value }) => value)).toEqual([6]);
  });

  test("of no disk are nothing", () => expect(metricsText([])).toBe(""));

  test("of an unlimited disk have no limit", () => {
    const [busy] = twoDisks();
    if (busy === undefined) throw new Error("no disk");
    expect(metricsText([{ ...busy, limits: UNLIMITED_DISK }])).not.toContain("_limit_");
  });
});

test("the board in docs/ asks only for metrics that there are", () => {
  const names = parse(metricsText(twoDisks())).flatMap(({ name, samples }) => [
    name,
    ...samples.map((it) => it.name),
  ]);
  const board = readFileSync(BOARD, "utf8");
  const asked = new Set([...board.matchAll(/xentool_[a-z_]+/g)].map(([name]) => name));
  expect([...asked].filter((name) => !names.includes(name))).toEqual([]);
  expect(asked.size).toBeGreaterThan(10);
  const { panels } = JSON.parse(board) as { panels: { id: number; title: string; targets: unknown[] }[] };
  expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
  expect(panels.every(({ title, targets }) => title !== "" && targets.length > 0)).toBe(true);
});

test("the longest waits are counted as such", () => {
  const days = 24 * 60 * 60 * 1000;
  expect([0, 0.0005, 0.001, 1, days, 3 * days, 2 ** 32 / 1000 + 0.002].map(latencyBucket)).toEqual([
    0, 0, 1, 10, 31, 31, 31,
  ]);
});
