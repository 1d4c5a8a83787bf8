// Definitions of commands in terms of yargs, which parses the command line and prints help.
import type { Argv, CommandModule, Options as YargsOption } from "yargs";
import { XentoolError } from "../../src/core/errors.ts";
import { keepNumbersAsTyped } from "./arguments.ts";
import type { Command, Example, ExitStatus } from "./command.ts";
import type { Option, Options } from "./option.ts";

/** `command`, which follows the words of `path`, for yargs. */
export function moduleOf(command: Command, path: readonly string[] = []): CommandModule {
  const words = [...path, command.name];
  return {
    // yargs would demand a positional before `early` has looked at the arguments.
    command: [command.name, ...positionalsOf(command, command.early === undefined)].join(" "),
    describe: command.summary,
    builder: (parser) => declare(parser, command, words),
    // yargs accepts what follows -- as an action, but it is not one.
    handler:
      command.run ??
      (() => {
        throw new XentoolError("usage", `${whichAction(command)} try: xentool ${words.join(" ")} --help`);
      }),
  };
}

/** The command line in one line: "blkback serve <image> [options]". */
export function synopsisOf(command: Command, words: readonly string[]): string {
  if (command.actions.length > 0) return [...words, "ACTION"].join(" ");
  const trailing = command.trailing === undefined ? [] : [command.trailing];
  return [...words, ...positionalsOf(command, true), "[options]", ...trailing].join(" ");
}

/** What "Exit status:" says of a command with statuses of its own. */
function statusesText(statuses: readonly ExitStatus[]): string {
  const own = statuses.map(([status, meaning]) => `${status} ${meaning}`).join(", ");
  return `Exit status: ${own}; others as everywhere.`;
}

function whichAction({ actions }: Command): string {
  return `which one: ${actions.map(({ name }) => name).join(", ")}?`;
}

function positionalsOf({ options }: Command, demanded: boolean): string[] {
  return Object.entries(options)
    .filter(([, { positional }]) => positional)
    .map(([name]) => (demanded ? `<${name}>` : `[${name}]`));
}

function declare(parser: Argv, command: Command, words: readonly string[]): Argv {
  parser.usage(`$0 ${synopsisOf(command, words)}\n\n${command.summary}`);
  declareOptions(parser, command.options);
  parser.describe("timeout", command.timeout);
  for (const [one, other] of command.conflicts) parser.conflicts(one, other);
  if (command.early !== undefined) parser.middleware(command.early, true);
  if (command.statuses.length > 0) parser.epilogue(statusesText(command.statuses));
  for (const action of command.actions) parser.command(moduleOf(action, words));
  if (command.actions.length > 0) parser.demandCommand(1, whichAction(command)).strict();
  return finish(parser, command.examples);
}

/** Declares `options`; those that are `global` are known to all commands below, too. */
export function declareOptions(parser: Argv, options: Options, global = false): void {
  for (const [name, option] of Object.entries(options)) {
    const { positional, kind, describe, choices } = option;
    if (positional)
      parser
        .positional(name, {
          describe,
          ...(kind === "choice" ? { choices } : { type: kind === "number" ? "number" : "string" }),
        })
        .demandOption(name);
    else parser.option(name, { ...declarationOf(option), global });
  }
}

/** An option for yargs. */
function declarationOf(option: Option<unknown>): YargsOption {
  const { kind, describe, alias, required, initial, choices } = option;
  return {
    describe,
    ...(kind !== "choice" && { type: TYPES[kind] }),
    ...(kind === "choice" && { choices }),
    ...(kind === "texts" && { array: true }),
    ...(alias !== undefined && { alias }),
    ...(initial !== undefined && { default: initial }),
    ...(required && { demandOption: true }),
    ...(WITH_VALUE.has(kind) && { requiresArg: true }),
  };
}

const TYPES = { flag: "boolean", count: "count", number: "number", text: "string", texts: "string" } as const;

const WITH_VALUE: ReadonlySet<Option<unknown>["kind"]> = new Set(["number", "text", "texts", "choice"]);

/**
 * Ends a declaration: leaves numbers for us to check, and ends the help with the options in the order in which people
 * look for them, and with examples that can be pasted. yargs alone would wrap a long command beside its purpose.
 */
export function finish(parser: Argv, examples: readonly Example[]): Argv {
  return keepNumbersAsTyped(parser)
    .group([], "Options:")
    .group([], "Global options:")
    .example(examples.map(([line, purpose]) => [`# ${purpose}\n${line}`, ""]));
}
