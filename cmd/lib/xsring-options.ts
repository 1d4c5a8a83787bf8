// What the commands of `xsring` take, apart from the commands and their bodies, which both know it.
import type { ArgumentsOf } from "./command.ts";
import { choice, flag, number, text, texts } from "./option.ts";

const CLOSE_METHODS = ["handshake", "reintroduce", "release", "poison"] as const;

export const INSPECT_OPTIONS = {
  domid: text("The guest whose ring is mapped, read-only; by number or name", { complete: "domain" }),
  file: text("A page in a file, raw or hex; -: stdin", { complete: "file" }),
  watch: flag("Look again and again, until Ctrl-C"),
  interval: number("Seconds between looks of --watch", 0.01, 3600, { initial: 1 }),
  settle: number("Treat a side as waiting after this many seconds without movement", 0, 3600, {
    initial: 0.2,
  }),
  history: number("Show the last N exchanges", 0, 10_000, { initial: 16 }),
};
export type InspectArguments = ArgumentsOf<typeof INSPECT_OPTIONS>;

export const CLOSE_OPTIONS = {
  domid: text("The guest, by number or name; it must not be using its ring", { complete: "domain" }),
  self: flag("This domain's own ring"),
  method: choice(CLOSE_METHODS, "Default: handshake. Use the others if the server does not support it"),
  force: flag("Allow what destroys state (release, poison)"),
  "dry-run": flag("Say what would be done; change nothing"),
  kick: text("A node that the guest watches; it is rewritten with its own value (default ~/memory/target)"),
};
export type CloseArguments = ArgumentsOf<typeof CLOSE_OPTIONS>;

export const TRACE_OPTIONS = {
  domid: text("The guest whose ring is followed, by number or name", { complete: "domain" }),
  read: text("Show a trace of --write; -: stdin", { complete: "file" }),
  write: text("Keep everything in a pcap file, too", { complete: "file" }),
  type: texts("Only these types: READ,WRITE,WATCH_EVENT; repeatable"),
  path: text("Only nodes whose path is this, alone or below a domain's own; * is anything"),
  "string-limit": number("Characters of a string", 1, 4096, { initial: 64, alias: "s" }),
  time: flag("Show the time of day instead of seconds", { alias: "t" }),
  summary: flag("Only count: a table of types, errors and latencies at the end", { alias: "c" }),
  output: text("Print to this file instead of standard output", { alias: "o", complete: "file" }),
  interval: number("Milliseconds between looks at a quiet ring", 0, 10_000, { initial: 1 }),
  count: number("Stop after this many lines", 1, Infinity),
  duration: number("Stop after this many seconds", 0.001, 1e6),
};
export type TraceArguments = ArgumentsOf<typeof TRACE_OPTIONS>;
