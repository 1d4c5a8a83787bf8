// Builds the C shim (build/shim) and the executable (dist/xentool) that holds it. Nothing is done
// that is up to date already. The executable never reads .env or bunfig.toml of where it is started, takes
// no code from BUN_OPTIONS, and starts fast because its bytecode is in it.
import { readdirSync, renameSync, rmSync, utimesSync } from "node:fs";
import { join } from "node:path";
import { bun, cmake, newestMs, root, run } from "./lib.ts";

const EXECUTABLE = "dist/xentool";
const SOURCES = [
  "src",
  "cmd",
  "package.json",
  "package-lock.json",
  "scripts/build-all.ts",
  "build/shim/libxentool.so",
  "build/shim/libxentool_programs.so",
];

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
function buildExecutable(): void {
  const fresh = `${EXECUTABLE}.new`;
  const began = new Date();
  const entries = ["cmd/xentool.ts", "cmd/worker.ts"];
  run(bun, ["build", ...FLAGS, ...entries, "--outfile", fresh], { quiet: true });
  utimesSync(join(root, fresh), began, began);
  // The executable holds its source maps; the copies beside it serve nobody.
  for (const name of readdirSync(join(root, "dist")))
    if (name.endsWith(".map")) rmSync(join(root, "dist", name));
  renameSync(join(root, fresh), join(root, EXECUTABLE));
}

/** Builds what is older than its sources. */
export function buildAll(): void {
  cmake("shim", [], "xentool");
  cmake("shim", [], "xentool_programs");
  if (newestMs(SOURCES) >= newestMs([EXECUTABLE])) buildExecutable();
}
