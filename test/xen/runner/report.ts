// The report: text for people, junit XML for CI. A scenario that failed shows the end of its log.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Result } from "./scenario.ts";

const LOG_LINES = 30;

/** 'N passed, M failed': everything that did not pass failed. */
export function totals(results: readonly Result[]): string {
  const passed = results.filter((result) => result.verdict === "passed").length;
  return `${passed} passed, ${results.length - passed} failed`;
}

/** Writes report.txt and junit.xml into `directory`, beside logs/; returns the text. */
export function writeReport(directory: string, versions: string, results: readonly Result[]): string {
  const lines = results.map((result) => textOf(directory, result)).join("\n");
  const text = `${lines}\n\n${versions.trim()}\n\n${totals(results)}\n`;
  writeFileSync(join(directory, "report.txt"), text);
  writeFileSync(join(directory, "junit.xml"), junit(directory, results));
  return text;
}

function textOf(directory: string, { run, verdict, seconds, message }: Result): string {
  const line =
    `${verdict.padEnd(8)} ${run.name.padEnd(40)} ${seconds.toFixed(1).padStart(7)} s  ${message}`.trimEnd();
  if (verdict === "passed") return line;
  const log = logTail(directory, run.name);
  return log === "" ? line : `${line}\n${log.replace(/^/gm, "    | ")}\n    logs: ${join("logs", run.name)}`;
}

function logTail(directory: string, name: string): string {
  const path = join(directory, "logs", name, "log");
  if (!existsSync(path)) return "";
  return readFileSync(path, "utf8").trimEnd().split("\n").slice(-LOG_LINES).join("\n");
}

function junit(directory: string, results: readonly Result[]): string {
  const failed = results.filter((result) => result.verdict !== "passed").length;
  const seconds = results.reduce((sum, result) => sum + result.seconds, 0);
  const cases = results.map((result) => testCase(directory, result)).join("");
  return (
    `<?xml version="1.0" encoding="UTF-8"?>\n` +
    `<testsuite name="xen" tests="${results.length}" failures="${failed}" time="${seconds.toFixed(1)}">\n${cases}</testsuite>\n`
  );
}

function testCase(directory: string, { run, verdict, seconds, message }: Result): string {
  const open = `  <testcase classname="xen.${run.daemon}" name="${escapeXml(run.name)}" time="${seconds.toFixed(1)}"`;
  if (verdict === "passed") return `${open}/>\n`;
  const failure = `<failure type="${verdict}" message="${escapeXml(message)}"/>`;
  return `${open}>${failure}<system-out>${escapeXml(logTail(directory, run.name))}</system-out></testcase>\n`;
}

/** Text as XML 1.0 allows it: what it does not allow becomes '?'. */
function escapeXml(text: string): string {
  const entities: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return text
    .replace(/[^\t\n\r\u{20}-\u{D7FF}\u{E000}-\u{FFFD}]/gu, "?")
    .replace(/[&<>"]/g, (c) => entities[c] ?? c);
}
