// Lines on standard input and output, waiting in the call: the suite is synchronous.
import { readSync, writeSync } from "node:fs";

const chunk = Buffer.alloc(65_536);
let rest = "";

/** The next line of standard input without its newline, or undefined at the end. */
export function readLine(): string | undefined {
  const parts = [rest];
  while (!(parts.at(-1) as string).includes("\n")) {
    const count = readSync(0, chunk);
    if (count === 0) return undefined;
    parts.push(chunk.toString("latin1", 0, count));
  }
  const text = parts.join("");
  const end = text.indexOf("\n");
  rest = text.slice(end + 1);
  return text.slice(0, end);
}

/** Writes `line` and a newline to standard output. */
export function writeLine(line: string): void {
  const bytes = Buffer.from(`${line}\n`, "latin1");
  for (let at = 0; at < bytes.length;) at += writeSync(1, bytes, at);
}
