// Checks that apply to the arguments of every command: an option is given once, a number is decimal, and no text is
// empty. yargs alone takes "" for 0 and turns a repeated option into an array. What yargs itself finds
// wrong, usage-errors.ts puts into words.
import type { Argv } from "yargs";
import { XentoolError } from "../../src/core/errors.ts";

const DECIMAL = /^-?[0-9]*\.?[0-9]+$/;

/** What yargs knows about the options and positionals of the current command; its types leave this out. */
interface Declarations {
  getOptions(): {
    readonly key: Readonly<Record<string, unknown>>;
    readonly default: Readonly<Record<string, unknown>>;
    readonly array: readonly string[];
    readonly boolean: readonly string[];
    readonly number: readonly string[];
  };
  getGroups(): Readonly<Record<string, readonly string[]>>;
  getInternalMethods(): { getContext(): { readonly commands: readonly string[] } };
}

/** Makes yargs keep the numbers declared so far as typed, so that `checkArguments` can show them. */
export function keepNumbersAsTyped<T>(argv: Argv<T>): Argv<T> {
  for (const name of declarationsOf(argv).getOptions().number) argv.string(name).coerce(name, toNumber);
  return argv;
}

function declarationsOf<T>(argv: Argv<T>): Declarations {
  return argv as unknown as Declarations;
}

/** `text` as a number, or unchanged if it is not one. */
export function toNumber(text: unknown): unknown {
  return typeof text === "string" && DECIMAL.test(text) ? Number(text) : text;
}

/** Fails with what is wrong with the first bad value. */
export function checkArguments<T>(argv: Argv<T>, values: Readonly<Record<string, unknown>>): void {
  const options = declarationsOf(argv).getOptions();
  for (const name of Object.keys(options.key)) {
    const value = values[name];
    if (value === options.default[name] || options.boolean.includes(name)) continue;
    const label = labelOf(argv, name);
    if (Array.isArray(value) && !options.array.includes(name)) fail(`${label} was given twice`);
    if (options.number.includes(name) && typeof value !== "number")
      fail(`${label} wants a number, not ${JSON.stringify(value)}`);
    if ([value].flat().some((each) => each === "" || each === false)) fail(`${label} must not be empty`);
  }
  if ([values["--"]].flat()[0] === "") fail("the command after -- must not be empty");
}

/** The words of the command that is being parsed. */
export function commandWords<T>(argv: Argv<T>): readonly string[] {
  return declarationsOf(argv).getInternalMethods().getContext().commands;
}

function positionalsOf<T>(argv: Argv<T>): readonly string[] {
  return declarationsOf(argv).getGroups()["Positionals:"] ?? [];
}

/** An argument's name as help shows it: DOMID for a positional, --domid for an option. */
function labelOf<T>(argv: Argv<T>, name: string): string {
  return positionalsOf(argv).includes(name) ? name.toUpperCase() : `--${name}`;
}

function fail(message: string): never {
  throw new XentoolError("usage", message);
}
