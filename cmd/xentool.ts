// xentool's entry point: the commands and the options they share. Commands import what they work with only when they
// run, so that help, completion and --version respond at once.
import "./lib/standard-error.ts";
import "./lib/working-directory.ts";
import yargs from "yargs";
import { description, version } from "../package.json";
import { EXIT_CODE, kindOf, XentoolError } from "../src/core/errors.ts";
import { blkbackCommand } from "./blkback.ts";
import { blkfrontCommand } from "./blkfront.ts";
import { doctorCommand } from "./doctor.ts";
import { checkArguments, usageError } from "./lib/arguments.ts";
import { withExamples } from "./lib/examples.ts";
import { outputErrorStatus } from "./lib/interruption.ts";
import { print } from "./lib/output.ts";
import { reportError } from "./lib/run-command.ts";
import { simCommand } from "./sim.ts";
import { topCommand } from "./top.ts";
import { vchanCommand } from "./vchan.ts";
import { xsringCommand } from "./xsring.ts";

const PLATFORM_CHOICES = ["auto", "xen", "sim"] as const;

function commandLine(args: readonly string[]) {
  const parser = yargs([...args])
    .scriptName("xentool")
    .usage(`$0 COMMAND\n\n${description}.`)
    .parserConfiguration({ "populate--": true, "greedy-arrays": false, "dot-notation": false })
    .option("platform", {
      choices: PLATFORM_CHOICES,
      default: "auto" as const,
      describe: "auto: the simulated host that XENTOOL_SIM names, else Xen",
      global: true,
    })
    .option("json", { type: "boolean", default: false, describe: "Print JSON", global: true })
    .option("timeout", {
      type: "number",
      requiresArg: true,
      describe: "Give up a wait for an answer after this many seconds",
      global: true,
    })
    .option("verbose", {
      alias: "v",
      type: "count",
      describe: "Log to stderr: -v state changes, -vv everything",
      global: true,
    })
    .command(blkbackCommand)
    .command(blkfrontCommand)
    .command(vchanCommand)
    .command(xsringCommand)
    .command(simCommand)
    .command(topCommand)
    .command(doctorCommand)
    .completion("completion", "Print a completion script for bash or zsh")
    .demandCommand(1, "which command?")
    .recommendCommands()
    .strictCommands()
    .strictOptions()
    .help()
    .alias("help", "h")
    .version(version)
    .group(["platform", "json", "timeout", "verbose", "help", "version"], "Global options:")
    .wrap(helpWidth())
    .exitProcess(false);
  parser.fail((message, error) => {
    throw error ?? usageError(message, parser);
  });
  parser.middleware((values) => checkArguments(parser, values));
  return withExamples(parser, [
    ["xentool sim run -- sh", "a shell in a simulated Xen host"],
    ["xentool doctor", "what this host has and lacks"],
    ['eval "$(xentool completion)"', "completion of commands and options in this shell"],
  ]);
}

/** As wide as the terminal, but at most COLUMNS, or 110 if COLUMNS is not set. */
function helpWidth(): number {
  return Math.min(process.stdout.columns ?? Infinity, Number(process.env["COLUMNS"]) || 110);
}

const args = Bun.argv.slice(2);

// The reader of our output may leave when it has enough; other errors are reported, once. This also applies after the
// command itself has ended.
process.stdout.once("error", (error: NodeJS.ErrnoException) => {
  process.stdout.on("error", () => {});
  const failure = new XentoolError("io", "cannot write to standard output", {}, error);
  if (error.code !== "EPIPE") reportError(failure, args.includes("--json"));
  process.exitCode = outputErrorStatus(error);
});
// yargs prints help with console.log, and Bun's own does not report failed writes.
console.log = print;

try {
  await commandLine(args).parseAsync();
} catch (error) {
  reportError(error, args.includes("--json"));
  process.exitCode = EXIT_CODE[kindOf(error)];
}
