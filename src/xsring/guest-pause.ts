// Holds a guest still while its ring is changed behind its back. On real Xen the toolstack's `xl` does it; guests of
// a simulated host have no virtual processors to pause.
import { XentoolError } from "../core/errors.ts";
import type { Domid } from "../core/types.ts";
import type { Platform } from "../platform/platform.ts";

export interface PausedGuest {
  /** False where the platform cannot pause guests. */
  readonly isPaused: boolean;
  resume(): Promise<void>;
}

/** Pauses `domid` until `resume`. Fails with `environment` when xl fails. */
export async function pauseGuest(platform: Platform, domid: Domid): Promise<PausedGuest> {
  if (platform.name !== "xen") return { isPaused: false, resume: () => Promise.resolve() };
  await xl("pause", domid);
  return { isPaused: true, resume: () => xl("unpause", domid) };
}

async function xl(command: "pause" | "unpause", domid: Domid): Promise<void> {
  const failure = (why: string, cause?: unknown): XentoolError =>
    new XentoolError("environment", `xl ${command} ${domid} failed${why}`, { domid, command }, cause);
  let child: Bun.Subprocess<"ignore", "ignore", "inherit">;
  try {
    // Apart from us: a terminal's Ctrl-C would end it, too, and leave the guest paused.
    child = Bun.spawn(["xl", command, String(domid)], {
      stdio: ["ignore", "ignore", "inherit"],
      detached: true,
    });
  } catch (error) {
    throw failure("", error);
  }
  const status = await child.exited;
  if (status !== 0) throw failure(` with status ${status}`);
}
