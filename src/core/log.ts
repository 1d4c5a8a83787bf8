// Logging: LogTape to stderr, because stdout is data. One category per module, one line per change of state and never
// one per request. Text that came from a guest goes through `escapeText`.
import { configureSync, getLogger, type LogLevel } from "@logtape/logtape";
import { priorityMark, type Priority } from "./line-priority.ts";

/** Logs `text` as it is, braces included. It is a template only with `values`, and must then be a constant. */
type Log = (text: string, values?: Readonly<Record<string, unknown>>) => void;

export type Logger = Readonly<Record<"debug" | "info" | "warn" | "error", Log>>;

/** The logger of one module, e.g. `moduleLogger("blkback")`. Silent until `configureLogging` has run. */
export function moduleLogger(module: string): Logger {
  const logger = getLogger(["xentool", module]);
  // LogTape takes each string for a template, and a brace in an image's name for the start of a placeholder.
  const at =
    (level: keyof Logger): Log =>
    (text, values) =>
      values === undefined ? logger[level]("{text}", { text }) : logger[level](text, values);
  return { debug: at("debug"), info: at("info"), warn: at("warn"), error: at("error") };
}

/**
 * Sends log records to stderr: warnings and worse by default, -v adds info, -vv adds debug.
 * `prefix` is put before each line (a worker names its device there).
 */
export function configureLogging(verbosity: number, prefix = "xentool"): void {
  const lowestLevel: LogLevel = verbosity >= 2 ? "debug" : verbosity === 1 ? "info" : "warning";
  configureSync({
    reset: true,
    sinks: {
      stderr: (record) => {
        const text = record.message.map((part) => (typeof part === "string" ? part : String(part))).join("");
        const level = record.level === "info" ? "" : `${record.level}: `;
        const module = record.category.slice(1).join(".");
        const mark = priorityMark(priorityOf(record.level));
        process.stderr.write(`${mark}${prefix}: ${module}: ${level}${escapeControls(text, Infinity)}\n`);
      },
    },
    loggers: [
      { category: ["xentool"], lowestLevel, sinks: ["stderr"] },
      { category: ["logtape", "meta"], lowestLevel: "error", sinks: ["stderr"] },
    ],
  });
}

/** Of LogTape's levels, we use four. */
function priorityOf(level: LogLevel): Priority {
  return level === "fatal" ? "error" : level === "trace" ? "debug" : level;
}

/** `text` with everything but printable ASCII escaped, cut at `limit` characters: safe on any terminal. */
export function escapeText(text: string, limit = 200): string {
  return escapeMatches(text, /[^\x20-\x7e]|\\/g, limit);
}

/**
 * `text` with everything escaped that a terminal would obey or hide, cut at `limit` characters. For our own texts
 * whose parts may already be escaped, such as an error's: those stay as they are.
 */
export function escapeControls(text: string, limit = 500): string {
  return escapeMatches(text, /[\p{C}\p{Zl}\p{Zp}]/gu, limit);
}

function escapeMatches(text: string, unsafe: RegExp, limit: number): string {
  const cut = text.length > limit ? text.slice(0, limit) : text;
  const escaped = cut.replace(unsafe, (c) => {
    const code = c.codePointAt(0) ?? 0;
    return c === "\\"
      ? "\\\\"
      : code < 0x100
        ? `\\x${code.toString(16).padStart(2, "0")}`
        : `\\u{${code.toString(16)}}`;
  });
  return text.length > limit ? `${escaped}…` : escaped;
}
