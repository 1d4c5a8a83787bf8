// A domain whose programs use Xen's libraries, as a process for library.test.ts:
//   library-domain.ts front TO FROM   answers what the other one asks of its domain
//   library-domain.ts suite TO FROM   runs the platform suite's cases that it is told, one a line
// TO and FROM are FIFOs between the two. A case that passed is answered by an empty line, another by what is wrong.
import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { toDomid } from "../../src/core/types.ts";
import { PLATFORM_CASES } from "./platform-suite.ts";
import { frontAnswers, remoteFront, type Ask } from "./remote-front.ts";
import { xenLibraries } from "./xen-libraries.ts";

const NEWLINE = 10;
const [role, to = "", from = ""] = process.argv.slice(2);

/** Reads a line; undefined at the end. There is never more than one line under way. */
function readLine(fd: number): string | undefined {
  const bytes: Buffer[] = [];
  for (;;) {
    const chunk = Buffer.alloc(65_536);
    const count = readSync(fd, chunk);
    if (count === 0) return undefined;
    bytes.push(chunk.subarray(0, count));
    if (chunk[count - 1] === NEWLINE) return Buffer.concat(bytes).toString().trimEnd();
  }
}

function writeLine(fd: number, line: string): void {
  const bytes = Buffer.from(`${line}\n`);
  for (let at = 0; at < bytes.length;) at += writeSync(fd, bytes, at);
}

function serveFront(): void {
  const answer = frontAnswers(xenLibraries());
  const questions = openSync(to, "r");
  const answers = openSync(from, "w");
  for (let line; (line = readLine(questions)) !== undefined;) writeLine(answers, answer(line));
}

async function runSuite(): Promise<void> {
  const back = xenLibraries();
  const questions = openSync(to, "w");
  const answers = openSync(from, "r");
  const ask: Ask = (question) => {
    writeLine(questions, question);
    return readLine(answers) ?? "";
  };
  for await (const line of createInterface({ input: process.stdin })) {
    const [where, name = ""] = line.split("\t");
    const front = where === "itself" ? back : remoteFront(toDomid(1), ask);
    let wrong = "";
    try {
      PLATFORM_CASES[name]?.({ front, back });
    } catch (error) {
      wrong = error instanceof Error ? `${error.message}\n${error.stack}` : String(error);
    }
    process.stdout.write(`${JSON.stringify(wrong)}\n`);
  }
  closeSync(questions);
}

if (role === "front") serveFront();
else await runSuite();
