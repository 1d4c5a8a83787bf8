// What README.md and docs/ say about commands, options and exit statuses is held against the commands' definitions.
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { xentool } from "../../cmd/commands.ts";
import type { Command } from "../../cmd/lib/command.ts";
import { GLOBAL_OPTIONS } from "../../cmd/lib/run-command.ts";
import { EXIT_CODE } from "../../src/core/errors.ts";
import { root } from "./executable.ts";

const GLOBAL = [...Object.entries(GLOBAL_OPTIONS), ["help", { alias: "h" }], ["version", {}]] as const;

const documents = ["README.md", ...readdirSync(join(root, "docs")).map((name) => `docs/${name}`)]
  .filter((path) => path.endsWith(".md"))
  .map((path) => ({ path, text: readFileSync(join(root, path), "utf8") }));

/** The command lines of ours in a document, without comments, quotations, and what follows `--`, `|` or `>`. */
function commandLines(text: string): string[] {
  const blocks = [...text.matchAll(/^ *```[a-z]*\n(.*?)^ *```/gms)].flatMap(([, block = ""]) =>
    block.replaceAll("\\\n", " ").replace(/ # .*/g, "").split("\n"),
  );
  const inline = [...text.replace(/^ *```.*?^ *```/gms, "").matchAll(/`([^`]+)`/g)].map(
    ([, code = ""]) => code,
  );
  return [...blocks, ...inline]
    .flatMap((line) => [...line.matchAll(/(?:^|[\s"'(])xentool (.*)/g)].map(([, rest = ""]) => rest))
    .map((line) => line.replace(/'[^']*'/g, "''").replace(/ -- .*| *[|>#&;)].*/, ""));
}

/** What is wrong with a command line, if anything. */
function mistakeIn(line: string): string | undefined {
  let command: Command = xentool;
  for (const word of line.split(/\s+/)) {
    if (word.startsWith("--")) {
      const name =
        word
          .slice(2)
          .split("=")[0]
          ?.replace(/[^a-z-].*/, "") ?? "";
      const known = [...Object.keys(command.options), ...GLOBAL.map(([each]) => each)];
      if (name !== "" && !known.includes(name)) return `xentool ${line}: no option ${word}`;
    } else if (command.actions.length > 0 && /^[a-z-]+$/.test(word)) {
      const action = command.actions.find(({ name }) => name === word);
      if (action === undefined) return `xentool ${line}: no command ${word}`;
      command = action;
    }
  }
  return undefined;
}

test("documents have command lines to look at, and mistakes in them are found", () => {
  expect(documents.flatMap(({ text }) => commandLines(text)).length).toBeGreaterThan(50);
  expect(mistakeIn("blkback list --json")).toBeUndefined();
  expect(mistakeIn("blkback lst")).toBe("xentool blkback lst: no command lst");
  expect(mistakeIn("blkback list --jsn")).toBe("xentool blkback list --jsn: no option --jsn");
});

test.each(documents)("$path names commands and options that exist", ({ text }) => {
  expect(commandLines(text).flatMap((line) => mistakeIn(line) ?? [])).toEqual([]);
});

test("sizes are in powers of 1024 everywhere, and so are their units", () => {
  const decimal = /(?<![\w/])(?:[0-9.]+ ?)?[kKMGT]B(?:\/s)?\b/g;
  const inHelp = ({ summary, options, actions }: Command): string[] =>
    [summary].concat(
      Object.values(options).map(({ describe }) => describe),
      actions.flatMap(inHelp),
    );
  const texts = [...documents.map(({ text }) => text), ...inHelp(xentool)];
  expect(texts.flatMap((text) => text.match(decimal) ?? [])).toEqual([]);
});

test("README.md lists every exit status that all commands share", () => {
  const readme = documents.find(({ path }) => path === "README.md")?.text ?? "";
  const listed = [...readme.matchAll(/^\| (\d+(?:, \d+)*) +\|/gm)].flatMap(([, codes = ""]) =>
    codes.split(", "),
  );
  for (const [kind, code] of Object.entries(EXIT_CODE))
    expect({ kind, listed: listed.includes(String(code)) }).toEqual({ kind, listed: true });
  expect(listed).toContain("129");
});
