// Builds the C shim (build/shim) and the executable (dist/xentool) that holds it. Nothing is done
// that is up to date already. The executable never reads .env or bunfig.toml of where it is started, takes
// no code from BUN_OPTIONS, and starts fast because its bytecode is in it.
import { mkdirSync, readdirSync, renameSync, rmSync, utimesSync } from "node:fs";
import { join } from "node:path";
import { NATIVE, type Target } from "./build-target.ts";
import { bun, cmake, newestMs, root, run } from "./lib.ts";

const SOURCES = [
  "src",
  "cmd",
  "package.json",
  "package-lock.json",
  "scripts/build-all.ts",
  "scripts/build-target.ts",
];
const LIBRARIES = ["build/shim/libxentool.so", "build/shim/libxentool_programs.so"];

const FLAGS = [
  "--compile",
  "--minify",
  "--sourcemap",
  "--bytecode",
  "--format=esm",
  "--no-compile-autoload-dotenv",
  "--no-compile-autoload-bunfig",
  "--compile-exec-argv=--disallow-code-generation-from-strings=strict",
];

/**
 * Builds beside the old executable and renames: one that runs keeps running. It is as old as the moment we
 * began, so that what changed meanwhile counts as newer.
 */
function buildExecutable({ executable, tree, bunOptions, runtime }: Target): void {
  const made = join(root, executable);
  const fresh = `${made}.new`;
  const began = new Date();
  mkdirSync(join(root, "dist"), { recursive: true });
  const entries = ["cmd/xentool.ts", "cmd/worker.ts"];
  const args = [
    "build",
    ...FLAGS,
    ...bunOptions,
    `--compile-executable-path=${runtime()}`,
    ...entries,
    "--outfile",
    fresh,
  ];
  run(bun, args, { quiet: true, directory: tree });
  utimesSync(fresh, began, began);
  // The executable holds its source maps; the copies beside it serve nobody.
  for (const name of readdirSync(join(root, "dist")))
    if (name.endsWith(".map")) rmSync(join(root, "dist", name));
  renameSync(fresh, made);
}

/** Builds what is older than its sources; returns the executable's path, relative to the project. */
export function buildAll(target: Target = NATIVE): string {
  const { executable, tree, cmakeOptions } = target;
  cmake("shim", cmakeOptions, ["xentool", "xentool_programs", "layout_probe"], tree);
  const libraries = LIBRARIES.map((library) => join(tree, library));
  if (newestMs([...SOURCES, ...libraries]) >= newestMs([executable])) buildExecutable(target);
  return executable;
}
