// npm run conformance: prints, for docs/protocol-support.md, where each case of the platform conformance suite holds:
// on the simulated platform, which is tried now, and on the labs' Xen, as `npm run test:xen -- --on LAB
// platform-conformance` has left it in build/.
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { buildAll } from "./build-all.ts";
import { bun, CommandFailed, main, root } from "./lib.ts";
import { reportsOf } from "../test/xen/runner/report.ts";
import { RELEASES, type Release } from "../test/xen/runner/scenario.ts";

const TITLES: Readonly<Record<Release, string>> = {
  bookworm: "Xen 4.17",
  trixie: "Xen 4.20",
  arm64: "Xen 4.20, Arm",
};

/** What the suite printed: dom0 with itself, and a guest with dom0; undefined where it was not run. */
type Seen = readonly (string | undefined)[];

function seenInSimulator(): Seen {
  return [0, 1].map((front) => {
    const done = spawnSync(bun, ["test/conformance/print-simulator.ts", String(front)], {
      cwd: root,
      encoding: "utf8",
    });
    // Of a simulator that does not get through all of them, nothing can be said.
    if (!/^\d+ cases passed$/m.test(done.stderr)) throw new CommandFailed(done.stderr);
    return done.stderr;
  });
}

function seenOnXen(release: Release): Seen {
  const logs = join(reportsOf(root, release), "logs/platform-conformance");
  return ["dom0.txt", "guest.txt"].map((name) => {
    const path = join(logs, name);
    return existsSync(path) ? readFileSync(path, "utf8") : undefined;
  });
}

/** Every case that passed or failed in the simulator. */
function casesOf(seen: Seen): string[] {
  const lines = seen[0]?.split("\n") ?? [];
  return lines.flatMap(
    (line) => /^ok {3}(.*)/.exec(line)?.[1] ?? /^FAIL: (.*?): \w*Error/.exec(line)?.[1] ?? [],
  );
}

function holds(printed: string | undefined, name: string): string {
  const lines = printed?.split("\n") ?? [];
  if (lines.includes(`ok   ${name}`)) return "yes";
  return lines.some((line) => line.startsWith(`FAIL: ${name}: `)) ? "no" : "not run";
}

function cell(seen: Seen, name: string): string {
  const [alone, guest] = seen.map((printed) => holds(printed, name));
  return alone === guest ? alone : `dom0 with itself: ${alone}; a guest with dom0: ${guest}`;
}

await main(() => {
  buildAll();
  const simulator = seenInSimulator();
  const columns = [simulator, ...RELEASES.map(seenOnXen)];
  const titles = ["simulator", ...RELEASES.map((release) => TITLES[release])];
  console.log(`| case | ${titles.join(" | ")} |`);
  console.log(`| --- |${" --- |".repeat(titles.length)}`);
  for (const name of casesOf(simulator))
    console.log(`| ${name} | ${columns.map((seen) => cell(seen, name)).join(" | ")} |`);
});
