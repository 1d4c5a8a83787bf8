// What the scripts share: the project's root, running commands, and comparing ages of files.
import { spawnSync } from "node:child_process";
import { readdirSync, statSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join, resolve } from "node:path";

export const root = resolve(import.meta.dirname, "..");
export const bun = join(root, "node_modules/.bin/bun");

/** A command of ours failed, and has said why itself. */
export class CommandFailed extends Error {}

interface RunOptions {
  readonly env?: Readonly<Record<string, string>>;
  /** Shows what the command says only when it fails. */
  readonly quiet?: boolean;
  /** Where it runs, relative to the project; default its root. */
  readonly directory?: string;
  /** Kills the command after this time. */
  readonly timeoutMs?: number;
}

/** Runs a command in the project's root to its end; throws CommandFailed when it fails. */
export function run(command: string, args: readonly string[], options: RunOptions = {}): void {
  const status = tryRun(command, args, options);
  if (status !== 0) throw new CommandFailed(`${command} ${args.join(" ")} failed with status ${status}`);
}

/** The same; answers the exit status (128 + n for a signal, 127 when there is no such command). */
export function tryRun(command: string, args: readonly string[], options: RunOptions = {}): number {
  const done = spawnSync(command, args, {
    cwd: join(root, options.directory ?? "."),
    encoding: "utf8",
    env: { ...process.env, ...options.env },
    stdio: options.quiet === true ? ["ignore", "pipe", "pipe"] : ["ignore", "inherit", "inherit"],
    maxBuffer: 64 * 2 ** 20,
    killSignal: "SIGKILL",
    ...(options.timeoutMs === undefined ? {} : { timeout: options.timeoutMs }),
  });
  if (done.error !== undefined) console.error(`${command}: ${done.error.message}`);
  if (done.status !== 0 && options.quiet === true)
    process.stderr.write(`${done.stdout ?? ""}${done.stderr ?? ""}`);
  if (done.signal !== null) console.error(`${command}: ended by ${done.signal}`);
  return done.status ?? (done.error === undefined ? 128 : 127);
}

/** Runs a command in the project's root, and returns what it prints; what it says on stderr is shown if it fails. */
export function outputOf(
  command: string,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): string {
  const done = spawnSync(command, args, {
    cwd: root,
    encoding: "utf8",
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  if (done.status === 0) return done.stdout;
  throw new CommandFailed(`${command} ${args.join(" ")} failed: ${done.error?.message ?? done.stderr}`);
}

/** The size of a file of the project, for people. */
export function sizeText(path: string): string {
  return `${Math.round(statSync(join(root, path)).size / 2 ** 20)} MiB`;
}

/** Configures and builds CMake's `targets` in `tree`/build/NAME. */
export function cmake(
  name: string,
  options: readonly string[] = [],
  targets: readonly string[] = ["all"],
  tree = ".",
): void {
  const build = join(tree, "build", name);
  run("cmake", ["-S", ".", "-B", build, ...options], { quiet: true });
  const jobs = String(availableParallelism());
  run("cmake", ["--build", build, "--target", ...targets, "--parallel", jobs], { quiet: true });
}

/** When anything below `paths` last changed, in milliseconds; 0 where there is nothing. */
export function newestMs(paths: readonly string[]): number {
  let newest = 0;
  for (const path of paths) {
    const status = statSync(join(root, path), { throwIfNoEntry: false });
    if (status === undefined) continue;
    newest = Math.max(newest, status.mtimeMs);
    if (!status.isDirectory()) continue;
    for (const name of readdirSync(join(root, path))) newest = Math.max(newest, newestMs([join(path, name)]));
  }
  return newest;
}

/** Runs a script's body: its exit status is 1 when a command failed, and only the unexpected has a stack. */
export async function main(body: () => void | Promise<void>): Promise<void> {
  try {
    await body();
  } catch (error) {
    if (!(error instanceof CommandFailed)) throw error;
    console.error(error.message);
    process.exitCode = 1;
  }
}
