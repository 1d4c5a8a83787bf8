// xentool's entry point: the commands and the options they share. Commands import what they work with only when they
// run, so that help, completion and --version respond at once.
import "./lib/standard-error.ts";
import "./lib/working-directory.ts";
import yargs from "yargs";
import { description, version } from "../package.json";
import { EXIT_CODE, kindOf, XentoolError } from "../src/core/errors.ts";
import { COMMANDS } from "./commands.ts";
import { checkArguments, usageError } from "./lib/arguments.ts";
import { outputErrorStatus } from "./lib/interruption.ts";
import { print } from "./lib/output.ts";
import { declareOptions, finish, moduleOf } from "./lib/parser.ts";
import { GLOBAL_OPTIONS, reportError } from "./lib/run-command.ts";

const EXAMPLES = [
  ["xentool sim run -- sh", "a shell in a simulated Xen host"],
  ["xentool doctor", "what this host has and lacks"],
  ['eval "$(xentool completion)"', "completion of commands and options in this shell"],
] as const;

function commandLine(args: readonly string[]) {
  const parser = yargs([...args])
    .scriptName("xentool")
    .usage(`$0 COMMAND\n\n${description}.`)
    .parserConfiguration({ "populate--": true, "greedy-arrays": false, "dot-notation": false })
    .completion("completion", "Print a completion script for bash or zsh")
    .demandCommand(1, "which command?")
    .recommendCommands()
    .strictCommands()
    .strictOptions()
    .help()
    .alias("help", "h")
    .version(version)
    .wrap(helpWidth())
    .exitProcess(false);
  declareOptions(parser, GLOBAL_OPTIONS, true);
  parser.group([...Object.keys(GLOBAL_OPTIONS), "help", "version"], "Global options:");
  for (const command of COMMANDS) parser.command(moduleOf(command));
  parser.fail((message, error) => {
    throw error ?? usageError(message, parser);
  });
  parser.middleware((values) => checkArguments(parser, values));
  return finish(parser, EXAMPLES);
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
