// The processes of a session that a keeper (keeper.ts) began, which is a process group, too.
import { readdirSync, readFileSync } from "node:fs";
import { pause } from "../../core/deadline.ts";
import { isProcessAlive } from "../../core/process-alive.ts";
import { attempt } from "../image/attempt.ts";

/** Between two looks, at most. */
const LOOK_MS = 200;

/**
 * Kills what is left of the group `pgid`, and waits for its end: until then the kernel may carry out what a process has
 * begun, however late, and it has its files open.
 */
export async function endGroup(pgid: number): Promise<void> {
  attempt(() => process.kill(-pgid, "SIGKILL"));
  for (let waitMs = 1; isAlive(pgid); waitMs = Math.min(2 * waitMs, LOOK_MS)) await pause(waitMs);
}

/** Zombies do not count: where process 1 is no init, as in containers, they stay. */
function isAlive(pgid: number): boolean {
  if (attempt(() => process.kill(-pgid, 0)) === undefined) return false;
  return readdirSync("/proc").some(
    (name) => /^\d+$/.test(name) && groupOf(name) === pgid && isProcessAlive(Number(name)),
  );
}

/** Behind the name, which may contain anything, come the state, the parent and the group. */
function groupOf(pid: string): number {
  const stat = attempt(() => readFileSync(`/proc/${pid}/stat`, "latin1")) ?? "";
  return Number(/^.*\) \S \d+ (\d+) /s.exec(stat)?.[1]);
}
