// What `xentool vchan` shows on stderr beside its stream: whom it waits for, and on a terminal how far a transfer is.
import { fstatSync, readFileSync } from "node:fs";
import { isatty } from "node:tty";
import { priorityMark } from "../../src/core/line-priority.ts";
import type { VchanCounts } from "../../src/vchan/endpoint.ts";
import { formatBytes } from "./output.ts";

/** Shorter transfers show nothing. */
const FIRST_MS = 1000;
const INTERVAL_MS = 500;

/** What standard input or output is, as far as it matters for who uses the terminal. */
export type StreamUse = "terminal" | "file" | "program";

/** What a relay's progress depends on. */
export interface ProgressSurroundings {
  readonly isTerminal: boolean;
  readonly verbosity: number;
  readonly json: boolean;
  /** Standard input and output are the local end; undefined: a socket or a command is. */
  readonly streams: { readonly input: StreamUse; readonly output: StreamUse } | undefined;
  /** `--send` or `--receive`. */
  readonly isOneWay: boolean;
}

/** Returns a function that prints one line for what is waited for, unless that was the last line already. */
export function waitPrinter(): (words: string) => void {
  let last = "";
  return (words) => {
    if (words !== last) process.stderr.write(`${priorityMark("info")}xentool: ${words}\n`);
    last = words;
  };
}

/**
 * Whether a person watches this transfer. Where the terminal is the stream itself, a line would spoil it. Between two
 * programs, as with ssh's ProxyCommand, the terminal belongs to them, so only -v shows it there.
 */
export function showsProgress(it: ProgressSurroundings): boolean {
  if (!it.isTerminal || it.json) return false;
  if (it.streams === undefined) return it.verbosity > 0;
  const { input, output } = it.streams;
  if (input === "terminal" && output === "terminal") return it.isOneWay;
  return it.verbosity > 0 || it.isOneWay || input !== "program" || output !== "program";
}

/** Shows on one line of the terminal what goes each way. Call the result when the transfer is over. */
export function showProgress(counts: () => VchanCounts): () => void {
  const totalBytes = inputBytes();
  const isOutputTerminal = streamUse(1) === "terminal";
  let last = counts();
  let lastMs = performance.now();
  let isShown = false;
  const show = (): void => {
    const now = counts();
    const nowMs = performance.now();
    const line = progressLine(now, last, (nowMs - lastMs) / 1000, totalBytes);
    last = now;
    lastMs = nowMs;
    // What the peer sends would appear on the same line.
    if (line === "" || (isOutputTerminal && now.bytesRead > 0)) return;
    process.stderr.write(`\r${line}\x1b[K`);
    isShown = true;
  };
  let timer = setTimeout(() => {
    show();
    timer = setInterval(show, INTERVAL_MS);
  }, FIRST_MS);
  return () => {
    clearTimeout(timer);
    if (isShown) process.stderr.write("\r\x1b[K");
  };
}

/** "sent 1.5 GiB of 3 GiB (50 %), 120 MiB/s", for each way in which something has gone. */
export function progressLine(
  now: VchanCounts,
  before: VchanCounts,
  seconds: number,
  totalBytes: number | undefined,
): string {
  const rate = (bytes: number, bytesBefore: number): string =>
    `${formatBytes((bytes - bytesBefore) / seconds)}/s`;
  const share =
    totalBytes === undefined || totalBytes === 0 || now.bytesWritten > totalBytes
      ? ""
      : ` of ${formatBytes(totalBytes)} (${Math.floor((100 * now.bytesWritten) / totalBytes)} %)`;
  const parts = [];
  if (now.bytesWritten > 0)
    parts.push(
      `sent ${formatBytes(now.bytesWritten)}${share}, ${rate(now.bytesWritten, before.bytesWritten)}`,
    );
  if (now.bytesRead > 0)
    parts.push(`received ${formatBytes(now.bytesRead)}, ${rate(now.bytesRead, before.bytesRead)}`);
  return parts.join("; ");
}

/** How the standard stream `fd` is used. */
export function streamUse(fd: 0 | 1): StreamUse {
  if (isatty(fd)) return "terminal";
  try {
    return fstatSync(fd).isFile() ? "file" : "program";
  } catch {
    return "program";
  }
}

/** Bytes that standard input still has, if it is a file and that can be found out: not in a jail, nor without /proc. */
function inputBytes(): number | undefined {
  if (streamUse(0) !== "file") return undefined;
  try {
    const position = /^pos:\s*(\d+)/m.exec(readFileSync("/proc/self/fdinfo/0", "latin1"))?.[1] ?? "0";
    return Math.max(0, fstatSync(0).size - Number(position));
  } catch {
    return undefined;
  }
}
