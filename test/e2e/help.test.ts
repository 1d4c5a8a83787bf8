// The help of every command: what is looked for first comes first, and examples can be pasted: each is one line,
// on a terminal of 80 columns too, and names commands and options that exist.
import { describe, expect, test } from "bun:test";
import { xentool } from "../../cmd/commands.ts";
import { pagesOf } from "../../scripts/man-page.ts";
import { runXentool } from "./executable.ts";

const COLUMNS = 80;
/** What example lines may begin with, apart from xentool itself. */
const OTHER_PROGRAMS = ["eval", "nbdcopy", "nbdinfo", "ssh", "tar", "xxd"];

async function helpText(command: readonly string[], columns: number): Promise<string> {
  const { stdout } = await runXentool([...command, "--help"], { env: { COLUMNS: `${columns}` } });
  return stdout;
}

const commands = new Map(
  pagesOf(xentool).map(({ words, command }) => [words.slice(1).join(" "), command] as const),
);
const helps = new Map<string, string>();
for (const name of commands.keys()) helps.set(name, await helpText(name === "" ? [] : name.split(" "), 1000));

/** The help of the command that an example names: of "blkback list" for "xentool blkback list --json". */
function helpForExample(example: string): string | undefined {
  const words = /\bxentool ([a-z- ]+)/.exec(example)?.[1]?.split(" ") ?? [];
  const names = words.map((_, index) => words.slice(0, index + 1).join(" "));
  const name = names.findLast((it) => helps.has(it));
  return name === undefined ? undefined : helps.get(name);
}

test("all commands are known here", () => {
  expect(helps.size).toBeGreaterThan(25);
  for (const name of ["blkback serve", "vchan bench listen", "xsring trace"])
    expect(helps.has(name)).toBe(true);
});

test("help is a word, too", async () => {
  for (const name of ["", "blkback", "blkback serve"]) {
    const words = name === "" ? [] : name.split(" ");
    const { stdout, status } = await runXentool(["help", ...words], { env: { COLUMNS: "1000" } });
    expect([stdout, status]).toEqual([String(helps.get(name)), 0]);
  }
});

describe.each([...helps.keys()])("xentool %s", (name) => {
  const command = name === "" ? [] : name.split(" ");

  test("has its own options before those of all commands", () => {
    const help = String(helps.get(name));
    const titles = [...help.matchAll(/^([A-Z][a-z ]+):$/gm)].map(([, title]) => String(title));
    const order = ["Commands", "Positionals", "Options", "Global options", "Examples"];
    expect(titles).toEqual(order.filter((title) => titles.includes(title)));
    expect(titles).toContain("Global options");
  });

  test("has examples that can be pasted", async () => {
    const examples = commands.get(name)?.examples ?? [];
    expect(examples.length).toBeGreaterThanOrEqual(helps.get(name)?.includes("Commands:") ? 2 : 1);
    const narrow = (await helpText(command, COLUMNS)).split("\n").map((line) => line.trim());
    for (const [line, purpose] of examples) {
      expect(narrow).toContain(line);
      expect(narrow).toContain(`# ${purpose}`);
      expect(["xentool", ...OTHER_PROGRAMS]).toContain(line.split(" ")[0]);
      expect(Bun.spawnSync(["bash", "-n", "-c", line]).success).toBe(true);
    }
  });

  test("has examples whose commands and options exist", () => {
    for (const [line] of commands.get(name)?.examples ?? []) {
      if (!line.includes("xentool ")) continue;
      const help = helpForExample(line);
      expect(help).toBeDefined();
      for (const option of line.replace(/ -- .*/, "").match(/(?<= )--[a-z-]+/g) ?? [])
        expect(help).toMatch(new RegExp(` ${option} `));
    }
  });
});
