// xentool doctor: what this host has and lacks for real Xen and for the simulated one, and what to type.
import { EXIT_CODE } from "../src/core/errors.ts";
import { command } from "./lib/command.ts";
import type { Check } from "./lib/host-checks.ts";
import { paint, print, printJson } from "./lib/output.ts";
import type { CommandContext } from "./lib/run-command.ts";

const AREAS = [
  { area: "host", title: "This host" },
  { area: "xen", title: "Real Xen" },
  { area: "sim", title: "Simulated Xen" },
] as const;

export const doctorCommand = command({
  name: "doctor",
  summary: "Say what this host has and lacks, and what to do about it",
  options: {},
  timeout: "Seconds that xenstore may take to answer (default 2)",
  examples: [
    ["xentool doctor", "everything, with what to type where something is missing"],
    ["xentool doctor --json", "for scripts; the exit status is 0 when Xen or the simulation is usable"],
    ["xentool doctor --platform sim", "exit status 3 unless the simulation is usable"],
  ],
  run: (_argv, context) => examine(context),
});

/** Exit status 0 when the requested platform (auto: either) is usable, otherwise that of `environment`. */
async function examine({ json, platform, timeoutMs }: CommandContext): Promise<number> {
  const { examineHost, isUsable } = await import("./lib/host-checks.ts");
  const checks = await examineHost({ root: "/", env: process.env, timeoutMs });
  const usable = { xen: isUsable(checks, "xen"), sim: isUsable(checks, "sim") };
  if (json) printJson({ usable, checks });
  else printChecks(checks, usable);
  return (platform === "auto" ? usable.xen || usable.sim : usable[platform]) ? 0 : EXIT_CODE.environment;
}

function printChecks(checks: readonly Check[], usable: Readonly<Record<"xen" | "sim", boolean>>): void {
  const width = Math.max(...checks.map(({ name }) => name.length));
  for (const { area, title } of AREAS) {
    const verdict = area === "host" ? "" : usable[area] ? ": usable" : ": not usable";
    print(paint("bold", `${title}${verdict}`));
    for (const check of checks.filter((it) => it.area === area)) {
      print(`  ${markOf(check)}  ${check.name.padEnd(width)}  ${check.found}`);
      if (check.advice !== undefined)
        print(`           ${" ".repeat(width)}  ${paint("dim", `→ ${check.advice}`)}`);
    }
  }
}

function markOf({ ok, required, tuning }: Check): string {
  if (ok) return paint("green", "ok     ");
  if (tuning) return paint("cyan", "note   ");
  return paint(required ? "red" : "yellow", "missing");
}
