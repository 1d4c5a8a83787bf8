// Every module of src loads by itself, so that coverage counts all of them. It needs the built shim, which
// `npm run check` has not: so it is not among the house rules.
import { expect, test } from "bun:test";
import { join } from "node:path";
import { filesLike, root } from "../tidy/sources.ts";

test("every module of src loads", async () => {
  const modules = filesLike(/^src\/.*\.ts$/).filter(({ path }) => !path.endsWith(".d.ts"));
  expect(modules.length).toBeGreaterThan(50);
  for (const { path } of modules) await import(join(root, path));
});
