// A manual page out of a command's definition in cmd/.
import { synopsisOf } from "../cmd/lib/parser.ts";
import type { Command } from "../cmd/lib/command.ts";
import type { Option, Options } from "../cmd/lib/option.ts";
import { GLOBAL_OPTIONS } from "../cmd/lib/run-command.ts";

/** A command with the words that lead to it: ["xentool", "blkback", "serve"]. */
export interface Page {
  readonly words: readonly string[];
  readonly command: Command;
}

type Entry = readonly [term: string, text: string];

/** What all pages have in common. */
export interface PageContext {
  readonly version: string;
  readonly exitStatus: readonly Entry[];
  readonly environment: readonly Entry[];
  readonly seeAlso: readonly string[];
}

/** The pages of `command`, which follows `path`, and of all commands below it. */
export function pagesOf(command: Command, path: readonly string[] = []): Page[] {
  const words = [...path, command.name];
  return [{ words, command }, ...command.actions.flatMap((action) => pagesOf(action, words))];
}

/** The page's name: "xentool-blkback-serve". */
export function pageName({ words }: Page): string {
  return words.join("-");
}

/** Text as roff shows it: nothing in it is an instruction. */
function roff(text: string): string {
  const escaped = text.replaceAll("\\", "\\e").replaceAll("-", "\\-").replaceAll("'", "\\(aq");
  const ascii = escaped.replaceAll("…", "...").replaceAll("`", "\\(ga");
  return ascii.replace(/^\./, "\\&.");
}

/** The page, in roff with the man macros. */
export function manPage(page: Page, context: PageContext): string {
  const { words, command } = page;
  const name = pageName(page);
  const options = Object.entries(command.options);
  const lines = [
    `.TH ${name.toUpperCase().replaceAll("-", "\\-")} 1 "" "xentool ${context.version}" "User Commands"`,
    ".SH NAME",
    `${roff(name)} \\- ${roff(command.summary)}`,
    ".SH SYNOPSIS",
    `.B ${roff(words.join(" "))}`,
    roff(synopsisOf(command, words).slice(words.join(" ").length).trim()),
    ".SH DESCRIPTION",
    roff(`${command.summary}.`),
    ...section(
      "COMMANDS",
      command.actions.map(({ name: action, summary }) => [action, summary]),
    ),
    ...section("ARGUMENTS", entriesOf(options.filter(([, { positional }]) => positional))),
    ...section("OPTIONS", entriesOf(options.filter(([, { positional }]) => !positional))),
    ...section("GLOBAL OPTIONS", [
      ...entriesOf(Object.entries(globalOptionsOf(command))),
      ["-h, --help", "Show help"],
      ["--version", "Show the version"],
    ]),
    ".SH EXAMPLES",
    ...command.examples.flatMap(([line, purpose]) => [
      ".PP",
      `${roff(purpose)}:`,
      ".PP",
      ".EX",
      roff(line),
      ".EE",
    ]),
    ...section("EXIT STATUS", exitStatusOf(command, context)),
    ...section("ENVIRONMENT", context.environment),
    ".SH SEE ALSO",
    context.seeAlso
      .filter((other) => other !== name)
      .map((other) => `.BR ${roff(other)} (1)`)
      .join(" ,\n"),
  ];
  return `${lines.join("\n")}\n`;
}

function globalOptionsOf({ timeout }: Command): Options {
  return { ...GLOBAL_OPTIONS, timeout: { ...GLOBAL_OPTIONS.timeout, describe: timeout } };
}

function section(title: string, entries: readonly Entry[]): string[] {
  if (entries.length === 0) return [];
  return [`.SH ${title}`, ...entries.flatMap(([term, text]) => [".TP", `.B ${roff(term)}`, roff(text)])];
}

/** The command's own statuses stand for the common ones of the same number. */
function exitStatusOf({ statuses }: Command, { exitStatus }: PageContext): Entry[] {
  const own = new Set(statuses.map(([status]) => status));
  const common = exitStatus.filter(([status]) => !own.has(status));
  return [...statuses.map(([status, meaning]): Entry => [status, sentence(meaning)]), ...common];
}

function sentence(text: string): string {
  return `${text.slice(0, 1).toUpperCase()}${text.slice(1)}.`;
}

function entriesOf(options: readonly (readonly [string, Option<unknown>])[]): Entry[] {
  return options.map(([name, option]) => [termOf(name, option), textOf(option)]);
}

const PLACEHOLDERS = {
  flag: "",
  count: "",
  number: " N",
  text: " TEXT",
  texts: " TEXT",
  choice: "",
} as const;

function termOf(name: string, { positional, alias, kind, choices }: Option<unknown>): string {
  if (positional) return name;
  const value = choices.length > 0 ? ` ${choices.join("|")}` : PLACEHOLDERS[kind];
  return `${alias === undefined ? "" : `-${alias}, `}--${name}${value}`;
}

function textOf({ describe, required, positional, initial, kind }: Option<unknown>): string {
  const isDefault = typeof initial === "number" || (typeof initial === "string" && initial !== "");
  const notes = [
    ...(required && !positional ? ["required"] : []),
    ...(isDefault ? [`default: ${initial}`] : []),
    ...(kind === "texts" ? ["may be repeated"] : []),
  ];
  return [describe, ...notes.map((note) => `[${note}]`)].join(" ");
}
