// What an executable is built for: the machine's own architecture, or the other one by a cross compiler. Bun's run
// time for the other one comes from npm, as the lock file names it.
import { createHash } from "node:crypto";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
} from "node:fs";
import { join } from "node:path";
import { bun, CommandFailed, root, run } from "./lib.ts";

/** An architecture as Node, GNU, CMake, npm and Bun name it. */
interface Architecture {
  readonly triple: string;
  readonly processor: string;
  readonly runtime: string;
  readonly bunTarget: string;
  readonly debian: string;
}

export const ARCHITECTURES = {
  x64: {
    triple: "x86_64-linux-gnu",
    processor: "x86_64",
    runtime: "@oven/bun-linux-x64",
    bunTarget: "bun-linux-x64",
    debian: "amd64",
  },
  arm64: {
    triple: "aarch64-linux-gnu",
    processor: "aarch64",
    runtime: "@oven/bun-linux-aarch64",
    bunTarget: "bun-linux-arm64",
    debian: "arm64",
  },
} as const satisfies Readonly<Record<string, Architecture>>;
export type TargetName = keyof typeof ARCHITECTURES;
export const TARGETS = Object.keys(ARCHITECTURES) as TargetName[];

/** The target that a command line names. */
export function targetNamed(text: string): TargetName {
  const name = TARGETS.find((known) => known === text);
  if (name === undefined) throw new CommandFailed(`--target ${text} is none of ${TARGETS.join(", ")}`);
  return name;
}

/** Where one target's build happens, and what makes it differ from the machine's own. */
export interface Target {
  /** The executable, relative to the project. */
  readonly executable: string;
  /** The directory, relative to the project, that holds src, cmd and build/shim of this target. */
  readonly tree: string;
  readonly cmakeOptions: readonly string[];
  readonly bunOptions: readonly string[];
  /** Bun's run time without its symbols: an executable cannot be stripped any more when it holds a program. */
  readonly runtime: () => string;
}

export const NATIVE: Target = {
  executable: "dist/xentool",
  tree: ".",
  cmakeOptions: [],
  bunOptions: [],
  runtime: () => stripped(realpathSync(bun), `bun-${process.arch}-${locked("bun").version}`, "strip"),
};

/** The target called `name`, with Bun's run time for it fetched and its tree laid out. */
export function prepareTarget(name: TargetName): Target {
  if (name === process.arch) return NATIVE;
  const { triple, processor, bunTarget, runtime } = ARCHITECTURES[name];
  const tree = join("build", name);
  layOut(join(root, tree));
  return {
    executable: `dist/xentool-${name}`,
    tree,
    cmakeOptions: [
      "-DCMAKE_SYSTEM_NAME=Linux",
      `-DCMAKE_SYSTEM_PROCESSOR=${processor}`,
      `-DCMAKE_C_COMPILER=${triple}-gcc`,
    ],
    bunOptions: [`--target=${bunTarget}`],
    runtime: () =>
      stripped(fetchRuntime(runtime), `bun-${name}-${locked(runtime).version}`, `${triple}-strip`),
  };
}

/**
 * The sources import the shim by its path in the tree, so that another target's shim needs a tree of its own: what is
 * small is copied anew, because Bun looks through links.
 */
function layOut(tree: string): void {
  for (const name of ["src", "cmd"]) {
    rmSync(join(tree, name), { recursive: true, force: true });
    cpSync(join(root, name), join(tree, name), { recursive: true, preserveTimestamps: true });
  }
  for (const name of ["package.json", "tsconfig.json"]) cpSync(join(root, name), join(tree, name));
  if (!existsSync(join(tree, "node_modules")))
    symlinkSync(join(root, "node_modules"), join(tree, "node_modules"));
}

interface Lock {
  readonly packages: Readonly<Record<string, { readonly version: string; readonly integrity: string }>>;
}

function locked(name: string): Lock["packages"][string] {
  const lock: Lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8"));
  const entry = lock.packages[`node_modules/${name}`];
  if (entry === undefined) throw new Error(`package-lock.json does not name ${name}`);
  return entry;
}

/** A copy of `executable` without symbols, made once. */
function stripped(executable: string, name: string, tool: string): string {
  const copy = join(root, "build/runtimes", name);
  if (existsSync(copy)) return copy;
  mkdirSync(join(root, "build/runtimes"), { recursive: true });
  run(tool, ["-o", `${copy}.new`, executable], { quiet: true });
  renameSync(`${copy}.new`, copy);
  return copy;
}

/** Fetches a run time of Bun, unless it is there; returns the path of its executable. */
function fetchRuntime(name: string): string {
  const { version, integrity } = locked(name);
  const stem = `${name.replace("@", "").replace("/", "-")}-${version}`;
  const directory = join(root, "build/runtimes", stem);
  const executable = join(directory, "package/bin/bun");
  if (existsSync(executable)) return executable;
  const fresh = `${directory}.new`;
  rmSync(fresh, { recursive: true, force: true });
  mkdirSync(fresh, { recursive: true });
  run("npm", ["pack", "--silent", "--pack-destination", fresh, `${name}@${version}`], { quiet: true });
  const archive = join(fresh, `${stem}.tgz`);
  const sum = createHash("sha512").update(readFileSync(archive)).digest("base64");
  if (`sha512-${sum}` !== integrity)
    throw new Error(`${name}@${version} is not what package-lock.json names`);
  run("tar", ["-xzf", archive, "-C", fresh]);
  rmSync(archive);
  renameSync(fresh, directory);
  return executable;
}
