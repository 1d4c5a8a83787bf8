// A command that only groups others, as `xentool blkback` does `serve` and the rest.
import type { CommandModule } from "yargs";
import { withExamples, type Example } from "./examples.ts";
import type { GlobalArguments } from "./run-command.ts";

type Group = CommandModule<GlobalArguments, GlobalArguments>;
/** A command whose arguments are its own affair: yargs has no type for "whichever". */
type Action = Pick<CommandModule<GlobalArguments, never>, "command" | "describe">;

/** `name` with exactly one of `actions` after it; errors name them. */
export function actionGroup(
  name: string,
  describe: string,
  actions: readonly Action[],
  examples: readonly Example[],
): Group {
  const names = actions.map(({ command }) => String(command).split(" ")[0]).join(", ");
  return {
    command: name,
    describe,
    builder: (argv) =>
      withExamples(
        actions
          .reduce((all, action) => all.command(action as Group), argv)
          .demandCommand(1, 1, `which one: ${names}?`, "one action at a time")
          .strict(),
        examples,
      ) as never,
    // yargs demands an action first.
    handler: () => {},
  };
}
