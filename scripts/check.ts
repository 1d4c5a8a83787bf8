// npm run check: what can be said about the sources without running them: format, lint, types, house rules.
// Goes through all of them, so that one look shows everything.
import { join } from "node:path";
import { bun, CommandFailed, main, root, tryRun } from "./lib.ts";

const tool = (name: string): string => join(root, "node_modules/.bin", name);

const CHECKS: readonly (readonly [string, readonly string[]])[] = [
  [bun, ["fmt", "--check"]],
  [tool("oxlint"), ["--type-aware", "--deny-warnings", "--quiet"]],
  [tool("tsc"), ["--noEmit"]],
  [bun, ["test", "test/tidy"]],
];

await main(() => {
  const failed = CHECKS.filter(([command, args]) => tryRun(command, args) !== 0);
  if (failed.length > 0) throw new CommandFailed(`${failed.length} of ${CHECKS.length} checks failed`);
});
