// Starts the processes that serve one guest each: this very program in another role (guest.ts).
import { join } from "node:path";
import type { GuestChild } from "../src/blkback/guests/guest-process.ts";
import type { Domid } from "../src/core/types.ts";
import { GUEST_ROLE } from "./guest-role.ts";

/**
 * The kernel's own name for our executable: its file may have been replaced by another version, whose messages are not
 * ours.
 */
const OURSELVES = "/proc/self/exe";
/** The executable has its sources in itself; Bun, when it runs them from the tree, is to be told. */
export const PROGRAM = Bun.main.startsWith("/$bunfs/") ? [] : [join(import.meta.dirname, "xentool.ts")];

/** The number of the domain is for people who look at the list of processes. */
export function spawnGuest(frontend: Domid): GuestChild {
  return Bun.spawn([OURSELVES, ...PROGRAM, GUEST_ROLE, "--", String(frontend)], {
    argv0: "xentool",
    env: process.env,
    stdin: "pipe",
    stdout: "pipe",
    stderr: "inherit",
  });
}
