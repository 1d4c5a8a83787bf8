// All commands of xentool, and xentool itself as the command that groups them.
import { description } from "../package.json";
import { blkbackCommand } from "./blkback.ts";
import { blkfrontCommand } from "./blkfront.ts";
import { completionCommand } from "./completion.ts";
import { doctorCommand } from "./doctor.ts";
import { group } from "./lib/command.ts";
import { selftestCommand } from "./selftest.ts";
import { simCommand } from "./sim.ts";
import { topCommand } from "./top.ts";
import { vchanCommand } from "./vchan.ts";
import { xsringCommand } from "./xsring.ts";

export const xentool = group({
  name: "xentool",
  summary: description,
  actions: [
    blkbackCommand,
    blkfrontCommand,
    vchanCommand,
    xsringCommand,
    simCommand,
    topCommand,
    doctorCommand,
    selftestCommand,
    completionCommand,
  ],
  examples: [
    ["xentool sim run -- sh", "a shell in a simulated Xen host"],
    ["xentool doctor", "what this host has and lacks"],
    ['eval "$(xentool completion bash)"', "completion in this shell; zsh and fish have it, too"],
  ],
});
