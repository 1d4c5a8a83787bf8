// npm test [-- ARGUMENT…]: everything that is tested without real Xen: the C shim by itself, as it is and under
// the sanitizers, then the TypeScript on top of it and the executable. Arguments (files, -t PATTERN) go to
// `bun test` and leave the C tests out. The last line is "N passed, N failed"; reports are in build/test.
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { buildAll } from "./build-all.ts";
import { bun, cmake, main, root, tryRun } from "./lib.ts";

const REPORTS = join(root, "build/test");
/** A test that blocks its thread cannot be ended by its runner. */
const TIMEOUT_MS = 28 * 60_000;
const SANITIZERS = { ASAN_OPTIONS: "detect_leaks=1", UBSAN_OPTIONS: "print_stacktrace=1" };

interface Counts {
  readonly passed: number;
  readonly failed: number;
}

/** Counts of the JUnit report that a runner wrote; a runner that failed without a failed test counts as one. */
function countsOf(report: string, status: number): Counts {
  const suite = existsSync(report)
    ? /<testsuites?\b[^>]*>/.exec(readFileSync(report, "utf8"))?.[0]
    : undefined;
  const count = (name: string): number =>
    Number(new RegExp(`\\b${name}="(\\d+)"`).exec(suite ?? "")?.[1] ?? 0);
  const failed = count("failures") + count("errors");
  const passed = count("tests") - failed - count("skipped") - count("disabled");
  return { passed, failed: failed === 0 && status !== 0 ? 1 : failed };
}

/** Builds the shim in build/NAME and runs its own tests. */
function testShim(name: string, options: readonly string[]): Counts {
  cmake(name, options);
  const report = join(REPORTS, `${name}.xml`);
  const args = [
    "--test-dir",
    join("build", name),
    "--output-on-failure",
    "--timeout",
    "300",
    "--output-junit",
    report,
  ];
  return countsOf(report, tryRun("ctest", args, { env: SANITIZERS }));
}

function testTypeScript(args: readonly string[]): Counts {
  const report = join(REPORTS, "bun.xml");
  const reporter = ["--reporter=junit", `--reporter-outfile=${report}`];
  return countsOf(
    report,
    tryRun(bun, ["test", "--timeout=30000", ...reporter, ...args], { timeoutMs: TIMEOUT_MS }),
  );
}

await main(() => {
  const args = process.argv.slice(2);
  rmSync(REPORTS, { recursive: true, force: true });
  mkdirSync(REPORTS, { recursive: true });
  buildAll();
  const shimTests =
    args.length > 0 ? [] : [testShim("shim", []), testShim("shim-sanitized", ["-DXT_SANITIZE=ON"])];
  const all = [...shimTests, testTypeScript(args)];
  const passed = all.reduce((sum, counts) => sum + counts.passed, 0);
  const failed = all.reduce((sum, counts) => sum + counts.failed, 0);
  console.log(`${passed} passed, ${failed} failed`);
  if (failed > 0) process.exitCode = 1;
});
