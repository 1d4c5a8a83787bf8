// Runs dist/xentool, the executable that people get, as a process of its own.
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { finished, run, start, type Child, type Finished } from "../support/process.ts";

export const root = resolve(import.meta.dirname, "../..");
export const executable = join(root, "dist/xentool");

if (!existsSync(executable)) throw new Error("dist/xentool is missing: npm run build");

export interface RunOptions {
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
}

/** Variables that would change what xentool does are not inherited. */
function cleanEnv(added: Readonly<Record<string, string>> = {}): Record<string, string> {
  const { PATH = "", HOME = "/" } = process.env;
  return { PATH, HOME, ...added };
}

/** Starts xentool with piped output. */
export function spawnXentool(args: readonly string[], { cwd = "/", env }: RunOptions = {}): Child {
  return start([executable, ...args], { cwd, env: cleanEnv(env) });
}

/** Runs xentool to its end. */
export function runXentool(args: readonly string[], options: RunOptions = {}): Promise<Finished> {
  return finished(spawnXentool(args, options));
}

/** Runs a line of bash in which $xentool is the executable. */
export function runShell(script: string, env: Readonly<Record<string, string>> = {}): Promise<Finished> {
  return run(["bash", "-c", script], { cwd: "/", env: cleanEnv({ ...env, xentool: executable }) });
}
