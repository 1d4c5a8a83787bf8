// The end of a command's help: options in the order in which people look for them, and examples that can be
// pasted: yargs alone would wrap a long command next to its description.
import type { Argv } from "yargs";

/** A command line that works as it is, and what it is for. */
export type Example = readonly [command: string, purpose: string];

/** Adds `examples` to a command's help, and puts the command's own options before those of all commands. */
export function withExamples<T>(argv: Argv<T>, examples: readonly Example[]): Argv<T> {
  return argv
    .group([], "Options:")
    .group([], "Global options:")
    .example(examples.map(([command, purpose]) => [`# ${purpose}\n${command}`, ""]));
}
