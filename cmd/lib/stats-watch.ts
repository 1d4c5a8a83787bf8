// `blkback stats --watch`: a line for each disk and interval, in 80 columns, under titles that come again before they
// have scrolled away. A narrower terminal shows fewer columns.
import { activityBetween, statsKey, type Activity } from "../../src/blkback/stats/activity.ts";
import type { DeviceStats } from "../../src/blkback/stats/stats.ts";
import { pause } from "../../src/core/deadline.ts";
import { vdevName } from "../../src/protocol/blkif.ts";
import { formatDuration, paint, print, printJson } from "./output.ts";
import type { CommandContext } from "./run-command.ts";
import { terminalSize } from "./terminal.ts";

/** Titles, and how wide their columns are. */
const COLUMNS = [
  ["time", 8],
  ["disk", 9],
  ["reads/s", 8],
  ["MiB/s", 7],
  ["writes/s", 8],
  ["MiB/s", 7],
  ["median", 7],
  ["99 %", 7],
  ["queue", 5],
  ["err/s", 5],
] as const;
/** What a narrow terminal does without, in this order: both of the columns MiB/s at once, which are nothing alone. */
const LEFT_OUT = ["time", "median", "queue", "err/s", "MiB/s", "99 %", "writes/s"];
const TITLES_EVERY = 20;

/** A disk's statistics for programs: with its name, as everywhere. */
export function statsForJson(stats: DeviceStats) {
  return { vdev: vdevName(stats.devid), ...stats };
}

/** Prints what the disks do, every `intervalMs`, until stopped. */
export async function watchStats(
  read: () => readonly DeviceStats[],
  intervalMs: number,
  { json, stop }: CommandContext,
): Promise<void> {
  let before = new Map<string, DeviceStats>();
  let beforeMs: number | undefined;
  for (let lines = 0; !stop.aborted;) {
    const now = read();
    const nowMs = performance.now();
    if (json) for (const stats of now) printJson({ time: Date.now(), ...statsForJson(stats) }, true);
    else if (beforeMs !== undefined) lines = printLines(before, now, nowMs - beforeMs, lines);
    beforeMs = nowMs;
    before = new Map(now.map((it) => [statsKey(it), it]));
    await pause(intervalMs, stop);
  }
}

/** Returns how many lines there are since the titles. */
function printLines(
  before: ReadonlyMap<string, DeviceStats>,
  all: readonly DeviceStats[],
  elapsedMs: number,
  lines: number,
): number {
  let since = lines;
  const time = new Date().toTimeString().slice(0, 8);
  const rows = all.map((now) => rowOf(time, now, activityBetween(before.get(statsKey(now)), now, elapsedMs)));
  if (rows.length === 0) {
    print(`${time} nothing is served here`);
    return 0;
  }
  const titles = COLUMNS.map(([title]) => title);
  const shown = shownIn(terminalSize()?.width);
  for (const row of rows) {
    if (since % TITLES_EVERY === 0) print(paint("bold", line(titles, shown)));
    print(line(row, shown));
    since++;
  }
  return since;
}

function rowOf(time: string, stats: DeviceStats, activity: Activity): string[] {
  const mebibytes = (bytes: number): string => (bytes / 2 ** 20).toFixed(1);
  const latency = (us: number): string => (us === 0 ? "" : formatDuration(us * 1000).replace(" ", ""));
  return [
    time,
    `${stats.domid}/${vdevName(stats.devid)}`,
    String(Math.round(activity.reads)),
    mebibytes(activity.readBytes),
    String(Math.round(activity.writes)),
    mebibytes(activity.writeBytes),
    latency(activity.medianUs),
    latency(activity.p99Us),
    String(stats.inFlight),
    String(Math.round(activity.errors)),
  ];
}

/** The columns that fit `width`, all of them in a pipe. */
export function shownIn(width = Infinity): ReadonlySet<string> {
  const shown = new Set<string>(COLUMNS.map(([title]) => title));
  const used = (): number =>
    COLUMNS.reduce((sum, [title, wide]) => sum + (shown.has(title) ? wide + 1 : 0), -1);
  for (const title of LEFT_OUT) if (used() > width) shown.delete(title);
  return shown;
}

function line(cells: readonly string[], shown: ReadonlySet<string>): string {
  const padded = COLUMNS.flatMap(([title, width], index) => {
    const cell = cells[index] ?? "";
    return shown.has(title) ? [index < 2 ? cell.padEnd(width) : cell.padStart(width)] : [];
  });
  return padded.join(" ").trimEnd();
}
