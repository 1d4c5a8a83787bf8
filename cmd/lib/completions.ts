// What may stand at the end of a command line, from the commands' definitions and from xenstore.
import type { Command } from "./command.ts";
import type { Option } from "./option.ts";
import { GLOBAL_OPTIONS } from "./run-command.ts";

/** A candidate, or :file or :directory, which the shell completes. */
interface Candidate {
  readonly text: string;
  readonly describe: string;
}

/** A command line up to the word that is to be completed. */
interface Line {
  readonly command: Command;
  /** How many positionals stand before the word. */
  readonly positionals: number;
  readonly given: ReadonlyMap<string, string>;
  /** The option whose value the word is. */
  readonly pending: Named | undefined;
  /** Whether the word belongs to a command behind `--`. */
  readonly isTrailing: boolean;
}
type Named = readonly [name: string, option: Option<unknown>];

/** How long xenstored has to tell domains and disks; a shell waits for us. */
const XENSTORE_MS = 1000;

/** A line for each completion of the last of `words`, which follow the name of `root`. */
export async function completionLines(root: Command, words: readonly string[]): Promise<string[]> {
  // bash makes three words of --mode=r.
  const last = words.at(-1) ?? "";
  const word = last === "=" ? "" : last;
  const line = readLine(root, words.slice(0, -1));
  const candidates = await candidatesFor(line, word);
  return candidates
    .filter(({ text }) => text.startsWith(":") || text.startsWith(word))
    .map(({ text, describe }) => `${text}\t${describe}`.trimEnd());
}

function readLine(root: Command, words: readonly string[]): Line {
  let command = root;
  let positionals = 0;
  let pending: Named | undefined;
  const given = new Map<string, string>();
  for (const word of words) {
    if (word === "=") continue;
    if (pending !== undefined) {
      given.set(pending[0], word);
      pending = undefined;
    } else if (word === "--") return { command, positionals, given, pending, isTrailing: true };
    else if (word.startsWith("-")) {
      const [, flagged = "", value] = /^--?([^=]*)=?(.*)$/s.exec(word) ?? [];
      const named = optionsOf(command).find(([name, { alias }]) => name === flagged || alias === flagged);
      if (named !== undefined) given.set(named[0], value ?? "");
      if (named !== undefined && takesValue(named[1]) && !word.includes("=")) pending = named;
    } else {
      const action = command.actions.find(({ name }) => name === word);
      if (action === undefined) positionals++;
      else command = action;
    }
  }
  return { command, positionals, given, pending, isTrailing: false };
}

async function candidatesFor(line: Line, word: string): Promise<readonly Candidate[]> {
  const { command, positionals, given, pending } = line;
  if (line.isTrailing) return command.trailing === undefined ? [] : [shellKnows("file")];
  if (pending !== undefined) return valuesFor(pending[1], line);
  const [, name] = /^--([^=]+)=/.exec(word) ?? [];
  if (name !== undefined) {
    const option = optionsOf(command).find(([each]) => each === name)?.[1];
    const values = option === undefined ? [] : await valuesFor(option, line);
    return values.map(({ text, describe }) => ({ text: `--${name}=${text}`, describe }));
  }
  const options = optionsOf(command)
    .filter(([each, { kind }]) => !given.has(each) || kind === "texts")
    .map(([each, { describe }]) => ({ text: `--${each}`, describe }));
  if (word.startsWith("-")) return options;
  const positional = Object.values(command.options).filter((option) => option.positional)[positionals];
  if (positional !== undefined) return valuesFor(positional, line);
  const actions = command.actions.map(({ name: text, summary: describe }) => ({ text, describe }));
  return actions.length > 0 ? actions : options;
}

function optionsOf(command: Command): readonly Named[] {
  const own = Object.entries(command.options).filter(([, { positional }]) => !positional);
  return [...own, ...Object.entries(GLOBAL_OPTIONS)];
}

function takesValue({ kind }: Option<unknown>): boolean {
  return kind !== "flag" && kind !== "count";
}

async function valuesFor(
  { choices, complete }: Option<unknown>,
  { given }: Line,
): Promise<readonly Candidate[]> {
  if (complete === "file" || complete === "directory") return [shellKnows(complete)];
  if (complete === undefined) return choices.map((each) => ({ text: String(each), describe: "" }));
  try {
    const { domains, vdevs } = await import("./completion-values.ts");
    const asked = given.get("platform") === "sim" ? "sim" : "auto";
    return await (complete === "domain"
      ? domains(asked, XENSTORE_MS)
      : vdevs(asked, XENSTORE_MS, given.get("domid")));
  } catch {
    // Without a xenstore there is nothing to choose from, and a shell's prompt is no place to say so.
    return [];
  }
}

function shellKnows(what: "file" | "directory"): Candidate {
  return { text: `:${what}`, describe: "" };
}
