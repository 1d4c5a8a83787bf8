// Checks that apply to the arguments of every command: an option is given once, a number is decimal, and no text is
// empty. yargs alone takes "" for 0 and turns a repeated option into an array. What yargs itself finds
// wrong, usage-errors.ts puts into words.
import type { Argv } from "yargs";
import { XentoolError } from "../../src/core/errors.ts";
import { labelOf, type Command } from "./command.ts";
import { rangeText, type Range } from "./option.ts";
import { GLOBAL_OPTIONS } from "./run-command.ts";

const DECIMAL = /^-?[0-9]*\.?[0-9]+$/;

/** What yargs knows about the current command; its types leave this out. */
interface Declarations {
  getOptions(): { readonly number: readonly string[] };
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
export function checkArguments(command: Command, values: Readonly<Record<string, unknown>>): void {
  for (const [name, { kind, initial, range }] of Object.entries({ ...GLOBAL_OPTIONS, ...command.options })) {
    const value = values[name];
    if (value === initial || kind === "flag") continue;
    const label = labelOf(command, name);
    if (Array.isArray(value) && kind !== "texts") fail(`${label} was given twice`);
    if (range !== undefined) checkNumber(label, value, range);
    if ([value].flat().some((each) => each === "" || each === false)) fail(`${label} must not be empty`);
  }
  if ([values["--"]].flat()[0] === "") fail("the command after -- must not be empty");
}

function checkNumber(label: string, value: unknown, range: Range): void {
  if (typeof value !== "number") fail(`${label} wants a number, not ${JSON.stringify(value)}`);
  const isIn = value >= range.from && value <= range.to && !(range.whole && !Number.isInteger(value));
  if (!isIn) fail(`${label} must be ${rangeText(range)}, not ${value}`);
}

/** The words of the command that is being parsed. */
export function commandWords<T>(argv: Argv<T>): readonly string[] {
  return declarationsOf(argv).getInternalMethods().getContext().commands;
}

function fail(message: string): never {
  throw new XentoolError("usage", message);
}
