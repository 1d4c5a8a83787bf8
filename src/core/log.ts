// Logging: LogTape to stderr, because stdout is data. One category per module, one line per change of
// state and never one per request. Text that came from a guest is passed through `escapeText`.
import { configureSync, getLogger, type Logger, type LogLevel } from "@logtape/logtape";

export type { Logger };

/** The logger of one module, e.g. `moduleLogger("blkback")`. Silent until `configureLogging` ran. */
export function moduleLogger(module: string): Logger {
  return getLogger(["xentool", module]);
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
        process.stderr.write(`${prefix}: ${record.category.slice(1).join(".")}: ${level}${text}\n`);
      },
    },
    loggers: [
      { category: ["xentool"], lowestLevel, sinks: ["stderr"] },
      { category: ["logtape", "meta"], lowestLevel: "error", sinks: ["stderr"] },
    ],
  });
}

/** `text` with everything but printable ASCII escaped, cut at `limit` characters: safe on any terminal. */
export function escapeText(text: string, limit = 200): string {
  const cut = text.length > limit ? text.slice(0, limit) : text;
  const escaped = cut.replace(/[^\x20-\x7e]|\\/g, (c) => {
    const code = c.codePointAt(0) ?? 0;
    return c === "\\"
      ? "\\\\"
      : code < 0x100
        ? `\\x${code.toString(16).padStart(2, "0")}`
        : `\\u{${code.toString(16)}}`;
  });
  return text.length > limit ? `${escaped}…` : escaped;
}
