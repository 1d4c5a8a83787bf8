// `xentool xsring`: look at, close and follow the ring between a guest and its xenstore server.
import { command, group } from "./lib/command.ts";
import { choice, flag, number, text, texts } from "./lib/option.ts";

const CLOSE_METHODS = ["handshake", "reintroduce", "release", "poison"] as const;

const NAME_TIMEOUT = "Seconds that xenstore may take to find a domain by its name (default 5)";

const inspect = command({
  name: "inspect",
  summary: "Draw a ring: its indices, what waits, what can be recovered, and a verdict",
  options: {
    domid: text("The guest whose ring is mapped, read-only; by number or name", { complete: "domain" }),
    file: text("A page in a file, raw or hex; -: stdin", { complete: "file" }),
    watch: flag("Look again and again, until Ctrl-C"),
    interval: number("Seconds between looks of --watch", 0.01, 3600, { initial: 1 }),
    settle: number("Treat a side as waiting after this many seconds without movement", 0, 3600, {
      initial: 0.2,
    }),
    history: number("Show the last N exchanges", 0, 10_000, { initial: 16 }),
  },
  conflicts: [["file", "domid"]],
  timeout: NAME_TIMEOUT,
  statuses: [
    ["0", "healthy"],
    ["4", "corrupt"],
    ["10", "the guest waits for the server"],
    ["11", "the server waits for the guest"],
    ["12", "reconnect pending"],
  ],
  examples: [
    ["xentool xsring inspect --domid 5", "the ring of domain 5"],
    ["xentool xsring inspect --domid 5 --json | jq -r .verdict", "for scripts"],
    ["xxd page.bin | xentool xsring inspect --file -", "a page from elsewhere"],
  ],
  run: async (argv, context) => (await import("./lib/xsring-inspect.ts")).runInspect(context, argv),
});

const close = command({
  name: "close",
  summary: "Bring a ring back to its beginning, or say why that cannot be done safely",
  options: {
    domid: text("The guest, by number or name; it must not be using its ring", { complete: "domain" }),
    self: flag("This domain's own ring"),
    method: choice(CLOSE_METHODS, "Default: handshake. Use the others if the server does not support it"),
    force: flag("Allow what destroys state (release, poison)"),
    "dry-run": flag("Say what would be done; change nothing"),
    kick: text("A node that the guest watches; it is rewritten with its own value (default ~/memory/target)"),
  },
  timeout: "Seconds that the server may take to answer on the ring (default 40), and elsewhere (default 5)",
  statuses: [
    ["0", "closed and verified"],
    ["4", "refused or left wrong"],
    ["6", "not answered"],
  ],
  examples: [
    ["xentool xsring close --domid 5 --dry-run", "what it would do, and what that means for the guest"],
    ["xentool xsring close --domid 5 --timeout 40", "with oxenstored, which may take 35 s to look"],
    ["xentool xsring close --domid 5 --method release --force", "the last resort: deletes the guest's nodes"],
  ],
  run: async (argv, context) => (await import("./lib/xsring-close.ts")).runClose(context, argv),
});

const trace = command({
  name: "trace",
  summary: "Follow the packets that cross a ring, without disturbing it",
  options: {
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
  },
  conflicts: [
    ["read", "domid"],
    ["read", "write"],
  ],
  timeout: NAME_TIMEOUT,
  examples: [
    ["xentool xsring trace --domid 5", "until Ctrl-C or until the domain is gone"],
    ["xentool xsring trace --domid 5 --type WRITE --path 'device/*'", "only these"],
    ["xentool xsring trace --domid 5 -c --duration 10", "who is asked for what, for ten seconds"],
    ["xentool xsring trace --domid 5 --write boot.pcap", "and later: trace --read boot.pcap"],
  ],
  run: async (argv, context) => (await import("./lib/xsring-trace.ts")).runTrace(context, argv),
});

export const xsringCommand = group({
  name: "xsring",
  summary: "Look at, close and follow a guest's xenstore ring",
  actions: [inspect, close, trace],
  examples: [
    ["xentool xsring inspect --domid 5", "is the ring of domain 5 healthy, and who waits for whom"],
    ["xentool xsring trace --domid 5", "what crosses it, until Ctrl-C"],
  ],
});
