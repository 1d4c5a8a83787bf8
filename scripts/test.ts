// npm test [-- ARGUMENT…]: everything that is tested without real Xen: the C shim by itself, as it is and under
// the sanitizers, then the TypeScript on top of it and the executable. Arguments (files, -t PATTERN) go to
// `bun test` and leave the C tests out. The last line is "N passed, N failed"; reports are in build/test.
import { spawn } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { buildAll } from "./build-all.ts";
import { bun, cmake, main, root, tryRun } from "./lib.ts";

const REPORTS = join(root, "build/test");
/** A test that blocks its thread cannot be ended by its runner. */
const TIMEOUT_MS = 28 * 60_000;
/** Tests that wait for time limits most of the time: these run beside the others, which need the processors. */
const PATIENT = [
  "e2e/nbd-half-open",
  "e2e/nbd-one-writer",
  "e2e/nbd-remains",
  "e2e/program-late",
  "interop/qemu-locks",
  "sim/blkback-handover",
  "sim/blkback-late-disks",
  "sim/vchan-endings",
  "sim/vchan-peer-watch",
  "unit/program",
].map((name) => `./test/${name}.test.ts`);
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

/** Arguments of `bun test`, whose report is build/test/NAME.xml. */
function bunTest(name: string, args: readonly string[]): { report: string; argv: string[] } {
  const report = join(REPORTS, `${name}.xml`);
  const reporter = ["--reporter=junit", `--reporter-outfile=${report}`];
  return { report, argv: ["test", "--timeout=30000", ...reporter, ...args] };
}

function testTypeScript(args: readonly string[]): Counts {
  const { report, argv } = bunTest("bun", args);
  return countsOf(report, tryRun(bun, argv, { timeoutMs: TIMEOUT_MS }));
}

/** Starts them. What they say is shown when they have ended, which is what the result waits for. */
function startPatient(): () => Promise<Counts> {
  const { report, argv } = bunTest("patient", PATIENT);
  const log = join(REPORTS, "patient.log");
  const out = openSync(log, "w");
  const child = spawn(bun, argv, {
    cwd: root,
    stdio: ["ignore", out, out],
    timeout: TIMEOUT_MS,
    killSignal: "SIGKILL",
  });
  closeSync(out);
  const ended = new Promise<number>((resolve) => {
    child.once("error", () => resolve(127));
    child.once("close", (status) => resolve(status ?? 128));
  });
  return async () => {
    const status = await ended;
    process.stdout.write(readFileSync(log));
    return countsOf(report, status);
  };
}

function otherTests(): string[] {
  const names = readdirSync(join(root, "test"), { recursive: true, encoding: "utf8" });
  const files = names.filter((name) => name.endsWith(".test.ts")).map((name) => `./test/${name}`);
  return files.filter((file) => !PATIENT.includes(file)).toSorted();
}

async function testAll(): Promise<Counts[]> {
  const shim = [testShim("shim", []), testShim("shim-sanitized", ["-DXT_SANITIZE=ON"])];
  const patient = startPatient();
  const others = testTypeScript(otherTests());
  return [...shim, others, await patient()];
}

await main(async () => {
  const args = process.argv.slice(2);
  rmSync(REPORTS, { recursive: true, force: true });
  mkdirSync(REPORTS, { recursive: true });
  buildAll();
  const all = args.length > 0 ? [testTypeScript(args)] : await testAll();
  const passed = all.reduce((sum, counts) => sum + counts.passed, 0);
  const failed = all.reduce((sum, counts) => sum + counts.failed, 0);
  console.log(`${passed} passed, ${failed} failed`);
  if (failed > 0) process.exitCode = 1;
});
