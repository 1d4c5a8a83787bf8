// The process of one guest, which `blkback watch` starts. Terminals send their signals to it, too; but `watch` ends it,
// and by itself it ends for SIGTERM alone.
import { writeFileSync } from "node:fs";
import { serveGuest } from "../src/blkback/guests/served-guest.ts";
import { EXIT_CODE, kindOf } from "../src/core/errors.ts";
import { reportError } from "./lib/run-command.ts";
import { GUEST_SOCKETS } from "./guest-role.ts";
import { spawnWorker } from "./spawn-worker.ts";

/** `frontend` is the guest's number, which it is also told by `watch`. */
export async function runGuest(frontend: string): Promise<never> {
  const stop = new AbortController();
  for (const signal of ["SIGINT", "SIGHUP"] as const) process.on(signal, () => {});
  process.on("SIGTERM", () => stop.abort());
  // For people who look for whom it serves; otherwise the name would be that of /proc/self/exe.
  writeFileSync("/proc/self/comm", `xentool@${frontend}`);
  // Without `watch` nobody reads them, and we are about to end.
  process.stdout.on("error", () => {});
  const write = (line: string): void => void process.stdout.write(line);
  const ends = { orders: Bun.stdin.stream(), write, ...GUEST_SOCKETS, spawnWorker };
  try {
    await serveGuest(ends, stop.signal);
    process.exit(0);
  } catch (error) {
    reportError(error, false);
    process.exit(EXIT_CODE[kindOf(error)]);
  }
}
