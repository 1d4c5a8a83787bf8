// Runs the checks of `xentool selftest`, one after the other, each within a time and with a directory of its own.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describeError } from "../core/errors.ts";
import { checkBlock } from "./block.ts";
import type { Check, Ground } from "./check.ts";
import { checkVchan } from "./vchan.ts";
import { checkXenstore } from "./xenstore.ts";

export type CheckName = "xenstore" | "block" | "vchan";

const CHECKS: Readonly<Record<CheckName, Check>> = {
  xenstore: checkXenstore,
  block: checkBlock,
  vchan: checkVchan,
};

export interface CheckResult {
  readonly check: CheckName;
  readonly passed: readonly string[];
  /** Why it failed; undefined: it did not. */
  readonly failure: string | undefined;
}

/** Runs one check; it fails when it takes longer than `limitMs`. Rejects only when it was interrupted by `stop`. */
export async function runCheck(
  check: CheckName,
  ground: Omit<Ground, "directory">,
  limitMs: number,
  onPassed: (what: string) => void,
): Promise<CheckResult> {
  const passed: string[] = [];
  const directory = mkdtempSync(join(tmpdir(), "xentool-selftest-"));
  const late = AbortSignal.timeout(limitMs);
  let failure: string | undefined;
  try {
    const stop = AbortSignal.any([ground.stop, late]);
    await CHECKS[check]({ ...ground, stop, directory }, (what) => {
      passed.push(what);
      onPassed(what);
    });
  } catch (error) {
    ground.stop.throwIfAborted();
    failure = late.aborted ? `not done after ${limitMs / 1000} s` : describeError(error);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
  return { check, passed, failure };
}
