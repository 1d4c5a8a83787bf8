// Runs dist/xentool, the executable that people get, as a process of its own.
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";

export const root = resolve(import.meta.dirname, "../..");
export const executable = join(root, "dist/xentool");

if (!existsSync(executable)) throw new Error("dist/xentool is missing: npm run build");

export interface Outcome {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

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
export function spawnXentool(args: readonly string[], options: RunOptions = {}) {
  return Bun.spawn([executable, ...args], {
    cwd: options.cwd ?? "/",
    env: cleanEnv(options.env),
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
}

/** Runs a program to its end. */
export async function outcomeOf(child: Bun.Subprocess<"ignore", "pipe", "pipe">): Promise<Outcome> {
  const [stdout, stderr, status] = await Promise.all([
    child.stdout.text(),
    child.stderr.text(),
    child.exited,
  ]);
  return { status, stdout, stderr };
}

/** Runs xentool to its end. */
export function runXentool(args: readonly string[], options: RunOptions = {}): Promise<Outcome> {
  return outcomeOf(spawnXentool(args, options));
}

/** Runs a line of bash in which $xentool is the executable. */
export function runShell(script: string, env: Readonly<Record<string, string>> = {}): Promise<Outcome> {
  return outcomeOf(
    Bun.spawn(["bash", "-c", script], {
      cwd: "/",
      env: cleanEnv({ ...env, xentool: executable }),
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    }),
  );
}

/** Reads `stream` until `text` has come; gives everything so far. Fails when the stream ends before. */
export async function readUntil(stream: ReadableStream<Uint8Array>, text: string): Promise<string> {
  const decoder = new TextDecoder();
  let read = "";
  const reader = stream.getReader();
  try {
    while (!read.includes(text)) {
      const { done, value } = await reader.read();
      if (done) throw new Error(`the stream ended without "${text}": ${read}`);
      read += decoder.decode(value, { stream: true });
    }
    return read;
  } finally {
    reader.releaseLock();
  }
}
