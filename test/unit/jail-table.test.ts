// docs/jail.md shows the table of system calls that the filters are made of.
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ALLOWED, FATAL, jailTables, REQUESTS } from "../support/jail-table.ts";

/** A table's cells, however a formatter has padded them. */
const cells = (text: string): string => text.replaceAll(/ +/g, " ").replaceAll(/\| -+ (?=\|)/g, "| --- ");

test("the document shows the table", () => {
  const document = readFileSync(join(import.meta.dirname, "../../docs/jail.md"), "utf8");
  const [, shown = ""] = document.split("<!-- csrc/jail/calls.h -->\n\n");
  expect(cells(shown.trim())).toBe(cells(jailTables()));
});

test("every word of the table is known, and nothing is both allowed and fatal", () => {
  expect(jailTables()).not.toContain("| ? |");
  expect(ALLOWED.length).toBeGreaterThan(100);
  expect(REQUESTS.length).toBeGreaterThan(10);
  const allowed = new Set(ALLOWED.map(({ name }) => name));
  expect(FATAL.filter(({ name }) => allowed.has(name))).toEqual([]);
});
