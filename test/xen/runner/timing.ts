// How long things took: by the clock, and in processor time of the emulator. The latter can be compared between runs
// on a machine that does other things meanwhile, too.

import { readFileSync } from "node:fs";
import type { Daemon } from "./scenario.ts";

/** Linux counts processor time in these, whatever the machine (USER_HZ). */
const TICKS_PER_SECOND = 100;

/** What one boot took. */
export interface BootTiming {
  readonly daemon: Daemon;
  readonly runs: number;
  /** Until dom0 was ready for its first scenario; undefined when it never was. */
  readonly upSeconds: number | undefined;
  readonly seconds: number;
  /** The emulator's processor time when it was ended, because nothing happened in time. */
  readonly endedAfter: number | undefined;
}

/** Seconds since it was made. */
export class Stopwatch {
  readonly #begun = performance.now();

  get seconds(): number {
    return (performance.now() - this.#begun) / 1000;
  }
}

/** The processor time that a process and its threads have used so far, in seconds; 0 once it is gone. */
export function processorSeconds(pid: number | undefined): number {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    // The name, in parentheses, may contain anything; utime and stime are the 12th and 13th field after it.
    const [user, system] = stat
      .slice(stat.lastIndexOf(")") + 2)
      .split(" ")
      .slice(11, 13);
    return (Number(user) + Number(system)) / TICKS_PER_SECOND;
  } catch {
    return 0;
  }
}
