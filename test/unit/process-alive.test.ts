// Whether a process lives: one that runs, one that is gone, and one that has ended but that nobody waits for.
import { readFileSync } from "node:fs";
import { expect, test } from "bun:test";
import { isProcessAlive } from "../../src/core/process-alive.ts";
import { childrenOf } from "../support/process.ts";

test("a process lives until it ends, also when its parent does not care", async () => {
  // The parent is another program once it has a child, and never waits for it.
  const parent = Bun.spawn(["sh", "-c", "sleep 1000 & exec sleep 1000"], {
    stdio: ["ignore", "ignore", "ignore"],
  });
  try {
    while (!readFileSync(`/proc/${parent.pid}/cmdline`, "utf8").startsWith("sleep")) await Bun.sleep(1);
    const [child] = childrenOf(parent.pid);
    expect([parent.pid, child].map((pid) => isProcessAlive(pid))).toEqual([true, true]);
    process.kill(child, "SIGKILL");
    while (isProcessAlive(child)) await Bun.sleep(1);
    expect(readFileSync(`/proc/${child}/stat`, "utf8")).toContain(") Z ");
  } finally {
    parent.kill("SIGKILL");
    await parent.exited;
  }
  expect(isProcessAlive(parent.pid)).toBe(false);
});
