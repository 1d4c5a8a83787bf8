// A command that only groups others, as `xentool blkback` groups `serve` and the rest.
import type { CommandModule } from "yargs";
import { XentoolError } from "../../src/core/errors.ts";
import { withExamples, type Example } from "./examples.ts";
import type { GlobalArguments } from "./run-command.ts";

type Group = CommandModule<GlobalArguments, GlobalArguments>;
/** A command with arguments of its own: yargs has no type for "whichever". */
type Action = Pick<CommandModule<GlobalArguments, never>, "command" | "describe">;

/** The command `path`, followed by one of `actions`; errors list them. */
export function actionGroup(
  path: string,
  describe: string,
  actions: readonly Action[],
  examples: readonly Example[],
): Group {
  const which = `which one: ${actions.map(({ command }) => String(command).split(" ")[0]).join(", ")}?`;
  return {
    command: path.split(" ").at(-1),
    describe,
    builder: (argv) =>
      withExamples(
        actions
          .reduce((all, action) => all.command(action as Group), argv)
          .demandCommand(1, which)
          .strict()
          .usage(`$0 ${path} ACTION\n\n${describe}`),
        examples,
      ),
    // yargs accepts what follows -- as the action, but it is not one.
    handler: () => {
      throw new XentoolError("usage", `${which} try: xentool ${path} --help`);
    },
  };
}
