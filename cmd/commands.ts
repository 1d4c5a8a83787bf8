// All commands of xentool.
import { blkbackCommand } from "./blkback.ts";
import { blkfrontCommand } from "./blkfront.ts";
import { doctorCommand } from "./doctor.ts";
import type { Command } from "./lib/command.ts";
import { simCommand } from "./sim.ts";
import { topCommand } from "./top.ts";
import { vchanCommand } from "./vchan.ts";
import { xsringCommand } from "./xsring.ts";

export const COMMANDS: readonly Command[] = [
  blkbackCommand,
  blkfrontCommand,
  vchanCommand,
  xsringCommand,
  simCommand,
  topCommand,
  doctorCommand,
];
