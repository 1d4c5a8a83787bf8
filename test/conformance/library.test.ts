// The platform suite once more, through the libraries that programs written in C use: domain 0 with itself, and with
// domain 1 in another process.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import { ProgramHost, succeeds } from "../interop/program-host.ts";
import { start } from "../support/process.ts";
import { PLATFORM_CASES } from "./platform-suite.ts";

/** What the libraries' functions cannot say: a notify is for a single page, and none can be out of range. */
const BEYOND_THEM = [
  "unmapping clears the byte and sends the event",
  "a notify beyond the mapping, or over someone else's port, is refused",
];
const CASES = Object.keys(PLATFORM_CASES).filter((name) => !BEYOND_THEM.includes(name));
const PROGRAM = join(import.meta.dir, "library-domain.ts");

let host: ProgramHost;
let suite: Bun.Subprocess<"pipe", "pipe", "inherit">;
let answers: AsyncIterator<Uint8Array>;

beforeAll(async () => {
  host = await ProgramHost.start();
  const fifos = [host.file("questions"), host.file("answers")];
  await succeeds(start(["mkfifo", ...fifos]));
  host.program(1, process.execPath, PROGRAM, "front", ...fifos);
  suite = host.started(
    Bun.spawn([process.execPath, PROGRAM, "suite", ...fifos], {
      env: host.environment(0),
      stdin: "pipe",
      stdout: "pipe",
      stderr: "inherit",
    }),
  );
  answers = suite.stdout.values();
});
afterAll(() => host.close());

/** What is wrong in a case; "" if it passes. */
async function run(where: "itself" | "another", name: string): Promise<unknown> {
  await suite.stdin.write(`${where}\t${name}\n`);
  await suite.stdin.flush();
  let line = "";
  while (!line.endsWith("\n")) {
    const { done, value } = await answers.next();
    if (done === true) return "the domain has ended";
    line += Buffer.from(value).toString();
  }
  return JSON.parse(line);
}

/** What the two processes still hold, once what they closed has been noticed. */
async function held(): Promise<string[]> {
  for (let attempt = 0; ; attempt++) {
    const items = host.host.leaks().filter((item) => !item.startsWith("process "));
    if (items.length === 0 || attempt === 500) return items;
    await Bun.sleep(10);
  }
}

test("the suite has the cases that are left out", () => {
  expect(CASES.length).toBe(Object.keys(PLATFORM_CASES).length - BEYOND_THEM.length);
});

test.each(CASES)("%s", async (name) => {
  expect(await run("another", name)).toBe("");
  expect(await held()).toEqual([]);
});

test.each(CASES)("a domain with itself: %s", async (name) => {
  expect(await run("itself", name)).toBe("");
  expect(await held()).toEqual([]);
});
