// No circle of files: whoever reads one file reads those that it imports, never itself again. Types count.
import { expect, test } from "bun:test";
import { circlesOf } from "./circles.ts";
import { filesLike, importsOf } from "./sources.ts";

test("no files of src and cmd import each other in a circle, types included", () => {
  const files = filesLike(/\.ts$/).filter(({ path }) => /^(src|cmd)\//.test(path));
  const imports = files.map((file) => [file.path, importsOf(file).map(({ target }) => target)] as const);
  expect(circlesOf(new Map(imports))).toEqual([]);
});

test.each([
  [{}, []],
  [{ a: ["b"], b: ["c"], c: [] }, []],
  [{ a: ["b", "c"], b: ["c"], c: ["yargs"] }, []],
  [{ a: ["a"] }, ["a -> a"]],
  [{ b: ["a"], a: ["b"] }, ["a -> b -> a"]],
  [{ top: ["a"], a: ["b"], b: ["c"], c: ["a"] }, ["a -> b -> c -> a"]],
  [{ a: ["b"], b: ["a", "c"], c: ["d"], d: ["c"] }, ["a -> b -> a", "c -> d -> c"]],
])("the circles of %j are %j", (imports, circles) => {
  expect(circlesOf(new Map(Object.entries<string[]>(imports)))).toEqual(circles);
});
