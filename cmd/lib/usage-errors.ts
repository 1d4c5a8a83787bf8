// What yargs found wrong with a command line, in our own words: with the arguments' names as help shows them, what
// was probably meant, and where the help of the very command is.
import { XentoolError } from "../../src/core/errors.ts";
import { labelOf, type Command } from "./command.ts";
import { GLOBAL_OPTIONS } from "./run-command.ts";

/** What went wrong while `command`, typed as `path` and `args`, was parsed; `message` is what yargs says of it. */
export function usageError(
  message: string,
  command: Command,
  path: string,
  args: readonly string[],
): XentoolError {
  const what = describeMistake(message, command, path, args);
  return new XentoolError("usage", `${what}${what.endsWith("?") ? "" : ";"} try: ${path} --help`);
}

function describeMistake(message: string, command: Command, path: string, args: readonly string[]): string {
  const [, got, need] =
    /^Not enough non-option arguments: got (\d+), need at least (\d+)$/.exec(message) ?? [];
  if (got !== undefined) return missing(command, positionalsOf(command).slice(Number(got), Number(need)));
  const [, absent] = /^Missing required arguments?: (.*)$/.exec(message) ?? [];
  if (absent !== undefined) return missing(command, absent.split(", "));
  const [, bare] = /^Not enough arguments following: (.*)$/.exec(message) ?? [];
  if (bare !== undefined) return `${labelOf(command, bare)} wants a value`;
  const [, one, other] = /^Arguments (.*) and (.*) are mutually exclusive$/.exec(message) ?? [];
  if (one !== undefined && other !== undefined)
    return `${labelOf(command, one)} and ${labelOf(command, other)} exclude each other`;
  const [, name, given, choices] =
    /^Invalid values: Argument: (.*?), Given: (.*), Choices: (.*?)$/s.exec(message.replace(/\s+/g, " ")) ??
    [];
  if (name !== undefined) return `${labelOf(command, name)} must be one of ${choices}, not ${given}`;
  const [, unknown] = /^Unknown (?:argument|command)s?: (.*)$/s.exec(message) ?? [];
  return unknown === undefined ? message : describeUnknown(unknown, command, path, args);
}

function describeUnknown(unknown: string, command: Command, path: string, args: readonly string[]): string {
  if (args.some((arg) => arg.startsWith("-") && arg.replace(/^--?/, "").split("=")[0] === unknown)) {
    const options = Object.entries(command.options).filter(([, { positional }]) => !positional);
    const names = [...options.map(([name]) => name), ...Object.keys(GLOBAL_OPTIONS)];
    const meant = nearest(unknown, names);
    return `unknown option: ${unknown}${meant === undefined ? "" : `, did you mean --${meant}?`}`;
  }
  if (command.actions.length > 0) {
    const [word = ""] = unknown.split(", ");
    const meant = nearest(
      word,
      command.actions.map(({ name }) => name),
    );
    return `unknown command: ${word}${meant === undefined ? "" : `, did you mean ${meant}?`}`;
  }
  const owner = Object.entries(command.options).find(([, { positional, choices }]) => {
    return !positional && choices.some((choice) => choice === unknown);
  });
  if (owner !== undefined) return `unexpected argument: ${unknown}, did you mean --${owner[0]} ${unknown}?`;
  if (command.trailing !== undefined)
    return `unexpected argument: ${unknown}, did you mean ${path} -- ${unknown.replaceAll(", ", " ")}?`;
  return `unexpected argument: ${unknown}`;
}

function missing(command: Command, names: readonly string[]): string {
  return `missing: ${names.map((name) => labelOf(command, name)).join(", ")}`;
}

function positionalsOf({ options }: Command): string[] {
  return Object.keys(options).filter((name) => options[name]?.positional === true);
}

/** The one of `names` that `word` is a slip of the hand away from, or the only one that begins with it. */
function nearest(word: string, names: readonly string[]): string | undefined {
  const begun = names.filter((name) => name.startsWith(word));
  if (begun.length === 1) return begun[0];
  const most = Math.min(2, Math.floor(word.length / 3));
  return names
    .map((name) => ({ name, steps: distance(word, name) }))
    .filter(({ steps }) => steps <= most)
    .toSorted((a, b) => a.steps - b.steps)[0]?.name;
}

/** How many letters have to be put in, left out or changed to make `to` of `from`. */
function distance(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, index) => index);
  for (let i = 1; i <= from.length; i++) {
    const next = [i];
    for (let j = 1; j <= to.length; j++) {
      const changed = (row[j - 1] ?? 0) + (from[i - 1] === to[j - 1] ? 0 : 1);
      next.push(Math.min(changed, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row.at(-1) ?? 0;
}
