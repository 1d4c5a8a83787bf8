// Starts the processes that serve one guest each: this very program in another role (guest.ts).
import { closeSync } from "node:fs";
import { join } from "node:path";
import type { GuestChild } from "../src/blkback/guests/guest-process.ts";
import type { Domid } from "../src/core/types.ts";
import { socketPair, type SocketPair } from "../src/native/descriptors.ts";
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
  using undo = new DisposableStack();
  using theirs = new DisposableStack();
  const pair = (kind: "descriptors" | "bytes"): SocketPair => {
    const made = socketPair(kind);
    undo.adopt(made.ours, closeSync);
    theirs.adopt(made.theirs, closeSync);
    return made;
  };
  const descriptors = pair("descriptors");
  const xenstore = pair("bytes");
  const child = Bun.spawn([OURSELVES, ...PROGRAM, GUEST_ROLE, "--", String(frontend)], {
    argv0: "xentool",
    env: process.env,
    stdio: ["pipe", "pipe", "inherit", descriptors.theirs, xenstore.theirs],
  });
  undo.move();
  const { stdin, stdout, exited } = child;
  return {
    stdin,
    stdout,
    exited,
    descriptors: descriptors.ours,
    xenstore: xenstore.ours,
    get signalCode() {
      return child.signalCode;
    },
    kill: (signal) => child.kill(signal),
  };
}
