// `xentool xsring`: look at, close and follow the ring between a guest and its xenstore server.
import type { Argv, CommandModule } from "yargs";
import { actionGroup } from "./lib/action-group.ts";
import { withExamples } from "./lib/examples.ts";
import { runCommand, type GlobalArguments } from "./lib/run-command.ts";
import type { CloseArguments } from "./lib/xsring-close.ts";
import type { InspectArguments } from "./lib/xsring-inspect.ts";
import type { TraceArguments } from "./lib/xsring-trace.ts";

type Module<T> = CommandModule<GlobalArguments, GlobalArguments & T>;

const CLOSE_METHODS = ["handshake", "reintroduce", "release", "poison"] as const;

const STATUS_HELP =
  "Exit status: 0 healthy, 4 corrupt, 10 the guest waits for the server, 11 the server waits for the guest, 12 reconnect pending; others as everywhere.";

/** --domid, for commands that take either a guest or something else. */
function domidOption<T>(argv: Argv<T>, describe: string): Argv<T & { domid: number | undefined }> {
  return argv.option("domid", { type: "number", requiresArg: true, describe });
}

const inspect: Module<InspectArguments> = {
  command: "inspect",
  describe: "Draw a ring: its indices, what waits, what can be recovered, and a verdict",
  builder: (argv) =>
    withExamples(
      domidOption(argv, "The guest whose ring is mapped, read-only")
        .option("file", {
          type: "string",
          requiresArg: true,
          describe: "A page in a file, raw or hex; -: stdin",
        })
        .option("watch", { type: "boolean", default: false, describe: "Look again and again, until Ctrl-C" })
        .option("interval", {
          type: "number",
          default: 1,
          requiresArg: true,
          describe: "Seconds between looks of --watch",
        })
        .option("settle", {
          type: "number",
          default: 0.2,
          requiresArg: true,
          describe: "Treat a side as waiting after this many seconds without movement",
        })
        .option("history", {
          type: "number",
          default: 16,
          requiresArg: true,
          describe: "Show the last N exchanges",
        })
        .conflicts("file", "domid")
        .epilogue(STATUS_HELP),
      [
        ["xentool xsring inspect --domid 5", "the ring of domain 5"],
        ["xentool xsring inspect --domid 5 --json | jq -r .verdict", "for scripts"],
        ["xxd page.bin | xentool xsring inspect --file -", "a page from elsewhere"],
      ],
    ),
  handler: (argv) =>
    runCommand(argv, async (context) => (await import("./lib/xsring-inspect.ts")).runInspect(context, argv)),
};

const close: Module<CloseArguments> = {
  command: "close",
  describe: "Bring a ring back to its beginning, or say why that cannot be done safely",
  builder: (argv) =>
    withExamples(
      domidOption(argv, "The guest, which must not be using its ring")
        .option("self", { type: "boolean", default: false, describe: "This domain's own ring" })
        .option("method", {
          choices: CLOSE_METHODS,
          describe: "Default: handshake. Use the others if the server does not support it",
        })
        .option("force", {
          type: "boolean",
          default: false,
          describe: "Allow what destroys state (release, poison)",
        })
        .option("dry-run", {
          type: "boolean",
          default: false,
          describe: "Say what would be done; change nothing",
        })
        .option("kick", {
          type: "string",
          requiresArg: true,
          describe:
            "A node that the guest watches; it is rewritten with its own value (default ~/memory/target)",
        })
        .epilogue(
          "Exit status: 0 closed and verified, 4 refused or left wrong, 6 not answered; others as everywhere.",
        ),
      [
        ["xentool xsring close --domid 5 --dry-run", "what it would do, and what that means for the guest"],
        ["xentool xsring close --domid 5 --timeout 40", "with oxenstored, which may take 35 s to look"],
        [
          "xentool xsring close --domid 5 --method release --force",
          "the last resort: deletes the guest's nodes",
        ],
      ],
    ),
  handler: (argv) =>
    runCommand(argv, async (context) => (await import("./lib/xsring-close.ts")).runClose(context, argv)),
};

const trace: Module<TraceArguments> = {
  command: "trace",
  describe: "Follow the packets that cross a ring, without disturbing it",
  builder: (argv) =>
    withExamples(
      domidOption(argv, "The guest whose ring is followed")
        .option("read", { type: "string", requiresArg: true, describe: "Show a trace of --write; -: stdin" })
        .option("write", {
          type: "string",
          requiresArg: true,
          describe: "Keep everything in a pcap file, too",
        })
        .option("type", {
          type: "string",
          array: true,
          requiresArg: true,
          describe: "Only these types: READ,WRITE,WATCH_EVENT; repeatable",
        })
        .option("path", {
          type: "string",
          requiresArg: true,
          describe: "Only nodes whose path is this; * is anything",
        })
        .option("string-limit", {
          alias: "s",
          type: "number",
          default: 64,
          requiresArg: true,
          describe: "Characters of a string",
        })
        .option("interval", {
          type: "number",
          default: 1,
          requiresArg: true,
          describe: "Milliseconds between looks at a quiet ring",
        })
        .option("count", { type: "number", requiresArg: true, describe: "Stop after this many lines" })
        .option("duration", { type: "number", requiresArg: true, describe: "Stop after this many seconds" })
        .conflicts("read", ["domid", "write"]),
      [
        ["xentool xsring trace --domid 5", "until Ctrl-C or until the domain is gone"],
        ["xentool xsring trace --domid 5 --type WRITE --path 'device/*'", "only these"],
        ["xentool xsring trace --domid 5 --write boot.pcap", "and later: trace --read boot.pcap"],
      ],
    ),
  handler: (argv) =>
    runCommand(argv, async (context) => (await import("./lib/xsring-trace.ts")).runTrace(context, argv)),
};

export const xsringCommand = actionGroup(
  "xsring",
  "Look at, close and follow a guest's xenstore ring",
  [inspect, close, trace],
  [
    ["xentool xsring inspect --domid 5", "is the ring of domain 5 healthy, and who waits for whom"],
    ["xentool xsring trace --domid 5", "what crosses it, until Ctrl-C"],
  ],
);
