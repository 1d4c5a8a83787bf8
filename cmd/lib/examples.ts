// The end of every command's declaration. It leaves the command's numbers for us to check, and ends its help with the
// options in the order in which people look for them, and with examples that can be pasted. yargs alone would wrap a
// long command next to its description.
import type { Argv } from "yargs";
import { keepNumbersAsTyped } from "./arguments.ts";

/** A command line that works as it is, and its purpose. */
export type Example = readonly [command: string, purpose: string];

/** For every command: adds `examples` to its help, and puts its own options before the global ones. */
export function withExamples<T>(argv: Argv<T>, examples: readonly Example[]): Argv<T> {
  return keepNumbersAsTyped(argv)
    .group([], "Options:")
    .group([], "Global options:")
    .example(examples.map(([command, purpose]) => [`# ${purpose}\n${command}`, ""]));
}
