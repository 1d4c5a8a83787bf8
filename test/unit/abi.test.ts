// src/native/abi.ts is what csrc/xentool.h and the compiler say. When it is stale: npm run abi.
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ABI_FILE, generateAbi } from "../../scripts/abi-file.ts";
import { symbols } from "../../src/native/abi.ts";
import { filesLike } from "../tidy/sources.ts";

test("the description of the C interface is fresh", () => {
  expect(readFileSync(join(import.meta.dir, "../..", ABI_FILE), "utf8")).toBe(generateAbi());
});

test("TypeScript uses every function of the shim", () => {
  const text = filesLike(/^(src|cmd)\/.*\.ts$/)
    .filter(({ path }) => path !== ABI_FILE)
    .map((file) => file.text)
    .join("\n");
  const unused = Object.keys(symbols).filter((name) => !new RegExp(`\\b${name}\\b`).test(text));
  expect(unused).toEqual([]);
});

test("nobody else writes down what stands there", () => {
  const others = filesLike(/^(src|cmd)\/.*\.ts$/).filter(({ path }) => path !== ABI_FILE);
  const typed = others.filter(({ text }) => /\bconst XT_\w+ =|args: \[.*returns:/.test(text));
  expect(typed.map(({ path }) => path).filter((path) => path !== "src/native/shim.ts")).toEqual([]);
});
