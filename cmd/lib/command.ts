// The definition of a command, from which come its arguments' types and checks, help, completion and manual page.
// parser.ts hands it to yargs, completion.ts to shells, scripts/man-page.ts to man.
import { areValuesOf, isStrings, type Options, type ValuesOf } from "./option.ts";
import { GLOBAL_OPTIONS, runCommand, type CommandContext, type GlobalArguments } from "./run-command.ts";

/** `timeout` of a command that waits for nobody. */
export const WAITS_FOR_NOBODY = "Without effect: this command waits for nobody";

/** A command line that works as it is, and its purpose. */
export type Example = readonly [command: string, purpose: string];

/** An exit status that means more to one command than to all, and what it means there. */
export type ExitStatus = readonly [status: string, meaning: string];

/** A command as help, completion and manual pages see it. */
export interface Command {
  readonly name: string;
  readonly summary: string;
  /** Positionals stand in the order in which they are typed. */
  readonly options: Options;
  /** What may follow `--`, as help shows it. */
  readonly trailing: string | undefined;
  /** Pairs of options of which only one may be given. */
  readonly conflicts: readonly (readonly [string, string])[];
  readonly statuses: readonly ExitStatus[];
  /** What --timeout bounds, as help shows it. */
  readonly timeout: string;
  readonly examples: readonly Example[];
  /** The commands that this one groups. */
  readonly actions: readonly Command[];
  /** Looks at the arguments before they are checked; for options that answer instead of the command. */
  readonly early: ((argv: Readonly<Record<string, unknown>>) => Promise<void> | undefined) | undefined;
  /** Takes what the parser returned. A command that groups others does nothing itself. */
  readonly run: ((argv: object) => Promise<void>) | undefined;
}

/** What a command's body gets: the values of its options, the global ones, and what followed `--`. */
export type ArgumentsOf<O extends Options> = GlobalArguments & ValuesOf<O> & Trailing;

interface Trailing {
  readonly "--"?: readonly string[];
}

interface Definition<O extends Options>
  extends
    Pick<Command, "name" | "summary" | "examples">,
    Partial<Pick<Command, "trailing" | "conflicts" | "statuses" | "timeout" | "early">> {
  readonly options: O;
  /** The body. It may return the exit status. */
  readonly run: (argv: ArgumentsOf<O>, context: CommandContext) => Promise<number | void> | number | void;
}

/** Defines a command that does something. */
export function command<O extends Options>({ run, ...definition }: Definition<O>): Command {
  const { options, name } = definition;
  return {
    trailing: undefined,
    conflicts: [],
    statuses: [],
    timeout: "Seconds that xenstore may take to answer (default 5)",
    early: undefined,
    ...definition,
    actions: [],
    run: (argv) => {
      if (!areValuesOf(GLOBAL_OPTIONS, argv) || !areValuesOf(options, argv) || !hasTrailing(argv))
        throw new TypeError(`${name}: the parser returned values of other types`);
      return runCommand(argv, (context) => run(argv, context));
    },
  };
}

/** The command that `words` name below `root`. */
export function commandNamed(root: Command, words: readonly string[]): Command {
  return words.reduce(({ actions }, word) => {
    const action = actions.find(({ name }) => name === word);
    if (action === undefined) throw new TypeError(`there is no command ${word}`);
    return action;
  }, root);
}

/** An argument's name as help shows it: DOMID for a positional, --domid for an option. */
export function labelOf({ options }: Command, name: string): string {
  return options[name]?.positional === true ? name.toUpperCase() : `--${name}`;
}

function hasTrailing(argv: object): argv is Trailing {
  return !("--" in argv) || isStrings(argv["--"]);
}

/** Defines a command that only groups others, as `xentool blkback` groups `serve` and the rest. */
export function group(definition: GroupDefinition): Command {
  return {
    ...definition,
    options: {},
    trailing: undefined,
    conflicts: [],
    statuses: [],
    timeout: GLOBAL_OPTIONS.timeout.describe,
    early: undefined,
    run: undefined,
  };
}

type GroupDefinition = Pick<Command, "name" | "summary" | "examples" | "actions">;
