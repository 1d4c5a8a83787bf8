// The house rules see imports through a few regular expressions; here is what those must and must not see.
import { expect, test } from "bun:test";
import { importsOf } from "./sources.ts";

/** Targets of the imports of a file src/block/file.ts with this text, with how they are imported. */
function seen(text: string): string[] {
  const file = { path: "src/block/file.ts", text, lines: text.split("\n") };
  return importsOf(file).map(
    ({ target, typeOnly, dynamic }) => target + (typeOnly ? " type" : "") + (dynamic ? " later" : ""),
  );
}

test.each([
  ['import { a } from "./a.ts";', ["src/block/a.ts"]],
  ['import type { A } from "../core/a.ts";', ["src/core/a.ts type"]],
  ['import {\n  a,\n  type B,\n} from "../core/a.ts";', ["src/core/a.ts"]],
  ['import * as a from "./a.ts";', ["src/block/a.ts"]],
  ['import yargs, { type Argv } from "yargs";', ["yargs"]],
  ['import "./a.ts";', ["src/block/a.ts"]],
  ['export { a } from "./a.ts";', ["src/block/a.ts"]],
  ['export * from "./a.ts";', ["src/block/a.ts"]],
  ['export type { A } from "./a.ts";', ["src/block/a.ts type"]],
  ['import library from "../../build/a.so" with { type: "file" };', ["build/a.so"]],
  ['  const { a } = await import("./a.ts");', ["src/block/a.ts later"]],
  ['new Worker(new URL("./a.ts", import.meta.url))', ["src/block/a.ts later"]],
  ['const text = "import";\nexport const a = 1;\nconst b = "./a.ts";', []],
  ['export function f(from: string): string {\n  return from + "x";\n}', []],
  ['import { a } from "./a.ts";\nimport { b } from "./b.ts";', ["src/block/a.ts", "src/block/b.ts"]],
])("%j", (text, targets) => expect(seen(text)).toEqual(targets));
