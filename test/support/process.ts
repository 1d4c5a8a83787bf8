// Programs that tests run as processes, with what they said and how they ended.
import { readFileSync } from "node:fs";

/** How a program ended. Killed by signal N it has status 128 + N, as in a shell. */
export interface Finished {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface ProcessOptions {
  readonly cwd?: string;
  /** The whole environment; without it the program inherits ours. */
  readonly env?: Readonly<Record<string, string | undefined>>;
}

export type Child = Bun.Subprocess<"ignore", "pipe", "pipe">;

/** Starts a program that has no input and whose output is piped. */
export function start(argv: readonly string[], options: ProcessOptions = {}): Child {
  return Bun.spawn([...argv], { ...options, stdin: "ignore", stdout: "pipe", stderr: "pipe" });
}

/** Waits for the end of a program whose output nobody else reads. */
export async function finished(child: Child): Promise<Finished> {
  const [stdout, stderr, status] = await Promise.all([
    child.stdout.text(),
    child.stderr.text(),
    child.exited,
  ]);
  return { status, stdout, stderr };
}

/** Runs a program to its end. */
export function run(argv: readonly string[], options: ProcessOptions = {}): Promise<Finished> {
  return finished(start(argv, options));
}

/** Reads `stream` until `text` has come, and returns everything so far. Fails when the stream ends before. */
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

/** The processes that `pid` has started and that are still there. */
export function childrenOf(pid: number): number[] {
  const text = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
  return text === "" ? [] : text.split(" ").map(Number);
}

/** The words that a process was started with; undefined when it has ended meanwhile. */
export function wordsOf(pid: number): readonly string[] | undefined {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").slice(0, -1);
  } catch {
    return undefined;
  }
}

/** The process of `watch` that serves a domain, which is its last word. */
export function guestProcessOf(watch: number, domid: number): number | undefined {
  return childrenOf(watch).find((pid) => wordsOf(pid)?.at(-1) === String(domid));
}
