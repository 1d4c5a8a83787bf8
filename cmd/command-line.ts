// What people type: the commands and the options they share. Commands import what they work with only when they run, so
// that help, completion and --version respond at once.
import yargs from "yargs";
import { version } from "../package.json";
import { EXIT_CODE, kindOf, XentoolError } from "../src/core/errors.ts";
import { xentool } from "./commands.ts";
import { checkArguments, commandWords } from "./lib/arguments.ts";
import { commandNamed, type Command } from "./lib/command.ts";
import { outputErrorStatus } from "./lib/interruption.ts";
import { print } from "./lib/output.ts";
import { declareOptions, finish, moduleOf } from "./lib/parser.ts";
import { GLOBAL_OPTIONS, reportError } from "./lib/run-command.ts";
import { usageError } from "./lib/usage-errors.ts";

function commandLine(args: readonly string[]) {
  const parser = yargs([...args])
    .scriptName("xentool")
    .usage(`$0 COMMAND\n\n${xentool.summary}.`)
    .parserConfiguration({
      "populate--": true,
      "parse-positional-numbers": false,
      "greedy-arrays": false,
      "dot-notation": false,
    })
    .demandCommand(1, "which command?")
    .strictCommands()
    .strictOptions()
    .help()
    .alias("help", "h")
    .version(version)
    .wrap(helpWidth())
    .exitProcess(false);
  const current = (): Command => commandNamed(xentool, commandWords(parser));
  declareOptions(parser, GLOBAL_OPTIONS, true);
  parser.group([...Object.keys(GLOBAL_OPTIONS), "help", "version"], "Global options:");
  for (const command of xentool.actions) parser.command(moduleOf(command));
  parser.fail((message, error) => {
    // yargs throws, too, where a value is missing.
    if (error !== undefined && error !== null && error.name !== "YError") throw error;
    const path = [xentool.name, ...commandWords(parser)].join(" ");
    throw usageError(message ?? error.message, current(), path, args);
  });
  parser.middleware((values) => checkArguments(current(), values));
  return finish(parser, xentool.examples);
}

/** As wide as the terminal, but at most COLUMNS, or 110 if COLUMNS is not set. */
function helpWidth(): number {
  return Math.min(process.stdout.columns ?? Infinity, Number(process.env["COLUMNS"]) || 110);
}

/** As of git and others: "help blkback serve" is "blkback serve --help". */
function withoutHelpWord(args: readonly string[]): readonly string[] {
  return args[0] === "help" ? [...args.slice(1), "--help"] : args;
}

/** Fails when help is asked for about a command that is not there: yargs would show the help of what is above it. */
function checkHelpedCommand(args: readonly string[]): void {
  const own = args.includes("--") ? args.slice(0, args.indexOf("--")) : args;
  if (!own.includes("--help") && !own.includes("-h")) return;
  const firstOption = own.findIndex((arg) => arg.startsWith("-"));
  let command = xentool;
  const path = [xentool.name];
  for (const word of own.slice(0, firstOption)) {
    if (command.actions.length === 0) return;
    const action = command.actions.find(({ name }) => name === word);
    if (action === undefined) throw usageError(`Unknown command: ${word}`, command, path.join(" "), args);
    command = action;
    path.push(word);
  }
}

/** What the scripts of `xentool completion` ask; it is not for people. */
async function complete(words: readonly string[]): Promise<void> {
  const { completionLines } = await import("./lib/completions.ts");
  for (const line of await completionLines(xentool, words)) print(line);
}

/** Runs a command line, and sets the exit status. */
export async function runCommandLine(args: readonly string[]): Promise<void> {
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
    if (args[0] === "complete" && args[1] === "--") await complete(args.slice(2));
    else {
      const words = withoutHelpWord(args);
      checkHelpedCommand(words);
      await commandLine(words).parseAsync();
    }
  } catch (error) {
    reportError(error, args.includes("--json"));
    process.exitCode = EXIT_CODE[kindOf(error)];
  }
}
