// What is to be done about the process of one guest, as a pure function of what is.

import { GONE_PATIENCE_MS } from "../bounds.ts";

export interface SeenGuest {
  /** The guest has a disk for us in xenstore. */
  readonly hasDisks: boolean;
  readonly process: "none" | "serving" | "ending";
  /** How many disks the process serves or is about to serve. */
  readonly served: number;
  /** How long the guest has had no disk for us in xenstore. */
  readonly withoutDisksMs: number;
  /** How long a new process must still wait, because the last ones died. */
  readonly pauseMs: number;
}

export type GuestStep =
  | { readonly step: "start" | "end" | "forget" | "none" }
  | { readonly step: "wait"; readonly pauseMs: number };

export function decideGuest({ hasDisks, process, served, withoutDisksMs, pauseMs }: SeenGuest): GuestStep {
  switch (process) {
    case "none":
      if (!hasDisks) return { step: "forget" };
      return pauseMs > 0 ? { step: "wait", pauseMs } : { step: "start" };
    case "serving":
      // A disk that is gone from xenstore is served until its guest has let go and its image is closed.
      if (hasDisks) return { step: "none" };
      // Only the process itself reports that it serves, and meanwhile it keeps the image from all others.
      if (served > 0 && withoutDisksMs < GONE_PATIENCE_MS)
        return { step: "wait", pauseMs: GONE_PATIENCE_MS - withoutDisksMs };
      return { step: "end" };
    case "ending":
      return { step: "none" };
  }
}
