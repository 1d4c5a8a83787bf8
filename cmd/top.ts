// xentool top: who is busy and who waits on this host, disks and xenstore rings, on one screen.
import type { CommandModule } from "yargs";
import { withExamples } from "./lib/examples.ts";
import { runCommand, type GlobalArguments } from "./lib/run-command.ts";
import type { TopArguments } from "./lib/top.ts";
import { SORTS } from "./lib/top-sorts.ts";

export const topCommand: CommandModule<GlobalArguments, GlobalArguments & TopArguments> = {
  command: "top",
  describe: "Show live which disks and which xenstore rings are busy, and who waits",
  builder: (argv) =>
    withExamples(
      argv
        .option("interval", {
          type: "number",
          default: 1,
          requiresArg: true,
          describe: "Seconds between two looks",
        })
        .option("sort", {
          choices: SORTS,
          default: "load" as const,
          describe: "What comes first; keys change it: l, b, t, w, n",
        })
        .option("count", { type: "number", requiresArg: true, describe: "Stop after this many looks" }),
      [
        ["xentool top", "until q or Ctrl-C"],
        ["xentool top --interval 10 >> top.log", "a line every ten seconds"],
        ["xentool top --count 1 --json | jq '.rings[0]'", "which domain keeps xenstored busy"],
      ],
    ),
  handler: (argv) =>
    runCommand(argv, async (context) => (await import("./lib/top.ts")).runTop(context, argv)),
};
