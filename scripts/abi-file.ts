// What src/native/abi.ts holds: the C interface as its two headers declare it, its functions read from there,
// its constants, sizes and offsets as the compiler has them.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CommandFailed, root } from "./lib.ts";

export const ABI_FILE = "src/native/abi.ts";
const HEADERS = ["csrc/xentool.h", "csrc/xen/xen.h"];

/** Types of bun:ffi. A function that would need another one is not for JavaScript. */
const FFI_TYPES: Readonly<Record<string, string>> = {
  int32_t: "i32",
  uint32_t: "u32",
  int64_t: "i64",
  uint64_t: "u64",
  double: "f64",
  void: "void",
};

interface Interface {
  readonly constants: string[];
  readonly functions: { readonly name: string; readonly args: readonly string[]; readonly returns: string }[];
  readonly structs: { readonly type: string; readonly fields: readonly string[] }[];
}

function ffiType(declaration: string): string {
  const type = declaration.includes("*") ? "ptr" : FFI_TYPES[declaration.split(" ")[0]];
  if (type === undefined) throw new CommandFailed(`JavaScript has no ${declaration}`);
  return type;
}

/** The top level of a header without its comments and directives: what stands between its semicolons. */
function declarationsOf(text: string): string[] {
  const declarations: string[] = [];
  let depth = 0;
  let current = "";
  for (const character of text.replaceAll(/\/\*[^]*?\*\//g, "").replaceAll(/^#.*$/gm, "")) {
    if (character === "{") depth++;
    if (character === "}") depth--;
    if (character !== ";" || depth > 0) {
      current += character;
      continue;
    }
    declarations.push(current.replaceAll(/\s+/g, " ").trim());
    current = "";
  }
  return declarations;
}

/** Names in a list like `a = 1, b` or `uint32_t a, b; double c`. */
function namesIn(list: string): string[] {
  return list
    .split(/[,;]/)
    .map((item) => /(\w+)(?: =.*)?$/.exec(item.trim())?.[1] ?? "")
    .filter((name) => name !== "");
}

function read(text: string): Interface {
  const constants = [...text.matchAll(/^#define (XT_\w+) [\w(]/gm)]
    .map(([, name]) => String(name))
    .filter((name) => name !== "XT_API");
  const found: Interface = { constants, functions: [], structs: [] };
  for (const declaration of declarationsOf(text)) {
    const call = /^XT_API (\w+) (\w+)\((.*)\)$/.exec(declaration);
    const list = /^enum \{(.*)\}$/.exec(declaration);
    const struct = /^((?:struct|union) xt_\w+) \{([^{}]*)\}$/.exec(declaration);
    if (call !== null) {
      const [, result, name, parameters] = call.map(String) as [string, string, string, string];
      const args = parameters === "void" ? [] : parameters.split(", ").map((one) => ffiType(noConst(one)));
      found.functions.push({ name, args, returns: ffiType(result) });
    } else if (list !== null) found.constants.push(...namesIn(String(list[1])));
    else if (struct !== null)
      found.structs.push({ type: String(struct[1]), fields: namesIn(String(struct[2])) });
    else throw new CommandFailed(`cannot read in a header: ${declaration}`);
  }
  return found;
}

function noConst(declaration: string): string {
  return declaration.replace(/^const /, "");
}

/** Values of C expressions, by a program that prints them. */
function evaluate(expressions: readonly string[]): number[] {
  const dir = mkdtempSync(join(tmpdir(), "xentool-abi-"));
  try {
    const lines = expressions.map((expression) => `  printf("%lld\\n", (long long)(${expression}));`);
    const includes = ["<stddef.h>", "<stdio.h>", '"xen/xen.h"'].map((name) => `#include ${name}`);
    const source = [...includes, "int main(void) {", ...lines, "  return 0;", "}", ""].join("\n");
    writeFileSync(join(dir, "values.c"), source);
    const values = join(dir, "values");
    execFileSync("cc", ["-std=c11", `-I${join(root, "csrc")}`, "-o", values, join(dir, "values.c")]);
    return execFileSync(values, { encoding: "utf8" }).trimEnd().split("\n").map(Number);
  } finally {
    rmSync(dir, { recursive: true });
  }
}

/** The text that src/native/abi.ts should have. */
export function generateAbi(): string {
  const { constants, functions, structs } = read(
    HEADERS.map((header) => readFileSync(join(root, header), "utf8")).join("\n"),
  );
  const values = evaluate([
    ...constants,
    ...structs.flatMap(({ type, fields }) => [
      `sizeof(${type})`,
      ...fields.map((field) => `offsetof(${type}, ${field})`),
    ]),
  ]);
  const next = (): number => values.shift() as number;
  const lines = [
    `// The C shim's interface, from ${HEADERS.join(" and ")}.`,
    "// Written by `npm run abi`; a test says when it is stale.",
    "",
    ...constants.map((name) => `export const ${name} = ${next()};`),
    "",
    "// Structures: their size in bytes, and where each field begins.",
    ...structs.flatMap(({ type, fields }) => [
      `export const ${String(type.split(" ")[1]).toUpperCase()} = {`,
      `  bytes: ${next()},`,
      ...fields.map((field) => `  ${field}: ${next()},`),
      "} as const;",
    ]),
    "",
    "/** Every function, as bun:ffi wants it. */",
    "export const symbols = {",
    ...functions.map(({ name, args, returns }) => {
      const list = args.map((type) => `"${type}"`).join(", ");
      return `  ${name}: { args: [${list}], returns: "${returns}" },`;
    }),
    "} as const;",
    "",
  ];
  return lines.join("\n");
}
