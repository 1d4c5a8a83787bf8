// The report: text for people, junit XML for CI. A scenario that failed shows the end of its log.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { RELEASES, type Release, type Result } from "./scenario.ts";
import type { BootTiming } from "./timing.ts";

const LOG_LINES = 30;

/** Where the reports of a lab's runs lie in the project. */
export function reportsOf(root: string, release: Release): string {
  return join(root, release === RELEASES[0] ? "build/xen" : `build/xen-${release}`);
}

/** 'N passed, M failed': everything that did not pass failed. */
export function totals(results: readonly Result[]): string {
  const passed = results.filter((result) => result.verdict === "passed").length;
  return `${passed} passed, ${results.length - passed} failed`;
}

/** What the report says besides the results. */
export interface Surroundings {
  readonly release: Release;
  /** Of the packages that the lab is made of, a line each. */
  readonly versions: string;
  /** What building the lab took, if it was built for this. */
  readonly buildSeconds: number | undefined;
  readonly boots: readonly BootTiming[];
}

/** Writes report.txt and junit.xml into `directory`, beside logs/; returns the text. */
export function writeReport(
  directory: string,
  surroundings: Surroundings,
  results: readonly Result[],
): string {
  const lines = results.map((result) => textOf(directory, result)).join("\n");
  const text = `${lines}\n\n${timesOf(surroundings)}\n\n${surroundings.versions.trim()}\n\n${totals(results)}\n`;
  writeFileSync(join(directory, "report.txt"), text);
  writeFileSync(join(directory, "junit.xml"), junit(directory, surroundings.release, results));
  return text;
}

function timesOf({ release, buildSeconds, boots }: Surroundings): string {
  const built =
    buildSeconds === undefined ? [] : [`${release}: the lab was built in ${buildSeconds.toFixed(0)} s`];
  return [
    ...built,
    ...boots.map(({ daemon, runs, upSeconds, seconds }) => {
      const up = upSeconds === undefined ? "never up" : `up after ${upSeconds.toFixed(1)} s`;
      return `${release} with ${daemon}: ${up}, ${seconds.toFixed(0)} s in all, scenarios: ${runs}`;
    }),
  ].join("\n");
}

function textOf(directory: string, result: Result): string {
  const { run, verdict, seconds, message } = result;
  const used =
    result.processorSeconds === undefined ? "" : `processor ${result.processorSeconds.toFixed(0)} s`;
  const times = `${seconds.toFixed(1).padStart(7)} s  ${used.padEnd(16)}`;
  const line = `${verdict.padEnd(8)} ${run.name.padEnd(40)} ${times}  ${message}`.trimEnd();
  if (verdict === "passed") return line;
  const log = logTail(directory, run.name);
  return log === "" ? line : `${line}\n${log.replace(/^/gm, "    | ")}\n    logs: ${join("logs", run.name)}`;
}

function logTail(directory: string, name: string): string {
  const path = join(directory, "logs", name, "log");
  if (!existsSync(path)) return "";
  return readFileSync(path, "utf8").trimEnd().split("\n").slice(-LOG_LINES).join("\n");
}

function junit(directory: string, release: Release, results: readonly Result[]): string {
  const failed = results.filter((result) => result.verdict !== "passed").length;
  const seconds = results.reduce((sum, result) => sum + result.seconds, 0);
  const cases = results.map((result) => testCase(directory, result)).join("");
  return (
    `<?xml version="1.0" encoding="UTF-8"?>\n` +
    `<testsuite name="xen.${release}" tests="${results.length}" failures="${failed}" time="${seconds.toFixed(1)}">\n${cases}</testsuite>\n`
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
