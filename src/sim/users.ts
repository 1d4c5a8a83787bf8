// The processes that still use a simulated host when the command that it was started for has ended: background jobs of
// a shell, for instance. They are asked to end while the host is still there for them to clean up.
import { readFileSync } from "node:fs";
import { pause } from "../core/deadline.ts";
import type { SimHost } from "./host.ts";
import { SETTLE_STEP_MS, USERS_END_MS } from "./bounds.ts";

/** Ends them: SIGTERM, and SIGKILL for those that are still there after `USERS_END_MS` or when `hurry` fires. */
export async function endUsers(host: SimHost, hurry: AbortSignal): Promise<void> {
  const asked = new Set<number>();
  const deadline = performance.now() + USERS_END_MS;
  for (let users = usersOf(host); users.length > 0; users = usersOf(host)) {
    const isLate = hurry.aborted || performance.now() > deadline;
    for (const pid of users) if (isLate || !asked.has(pid)) send(pid, isLate ? "SIGKILL" : "SIGTERM");
    if (isLate) return;
    for (const pid of users) asked.add(pid);
    await pause(SETTLE_STEP_MS, hurry);
  }
}

/** Their numbers. A number that means another process here, in this PID namespace, is left out. */
function usersOf(host: SimHost): number[] {
  const pids = host.usage().flatMap(({ kind, pid }) => (kind === "process" ? [pid] : []));
  return [...new Set(pids)].filter((pid) => pid !== process.pid && hasEnvironmentOf(host, pid));
}

/** Whether the process was started with the environment through which programs find the host. */
function hasEnvironmentOf({ dir }: SimHost, pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/environ`, "utf8").split("\0").includes(`XENTOOL_SIM=${dir}`);
  } catch {
    return false;
  }
}

function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It has just ended, which is what we want.
  }
}
