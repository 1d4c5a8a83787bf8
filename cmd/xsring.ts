// `xentool xsring`: look at, close and follow the ring between a guest and its xenstore server.
import { command, group } from "./lib/command.ts";
import { CLOSE_OPTIONS, INSPECT_OPTIONS, TRACE_OPTIONS } from "./lib/xsring-options.ts";

const NAME_TIMEOUT = "Seconds that xenstore may take to find a domain by its name (default 5)";

const inspect = command({
  name: "inspect",
  summary: "Draw a ring: its indices, what waits, what can be recovered, and a verdict",
  options: INSPECT_OPTIONS,
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
  options: CLOSE_OPTIONS,
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
  options: TRACE_OPTIONS,
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
