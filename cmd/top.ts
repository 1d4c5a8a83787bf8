// xentool top: who is busy and who waits on this host, disks and xenstore rings, on one screen.
import { command } from "./lib/command.ts";
import { choice, number } from "./lib/option.ts";
import { SORTS } from "./lib/top-sorts.ts";

export const topCommand = command({
  name: "top",
  summary: "Show live which disks and which xenstore rings are busy, and who waits",
  options: {
    interval: number("Seconds between two looks", 0.1, 86_400, { initial: 1 }),
    sort: choice(SORTS, "What comes first; keys change it: l, b, t, w, n", { initial: "load" }),
    count: number("Stop after this many looks", 1, Infinity),
  },
  timeout: "Without effect: what xenstore does not answer is shown as it was last known",
  examples: [
    ["xentool top", "until q or Ctrl-C"],
    ["xentool top --interval 10 >> top.log", "a line every ten seconds"],
    ["xentool top --count 1 --json | jq '.rings[0]'", "which domain keeps xenstored busy"],
  ],
  run: async (argv, context) => (await import("./lib/top.ts")).runTop(context, argv),
});
