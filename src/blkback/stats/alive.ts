// Whether the planes of this process's disks live, for whoever would end a process that hangs.
import type { EngineKind } from "../../native/reactor.ts";
import { planesAnswer } from "../../plane/plane.ts";

/** With --engine sync a plane stands still while its storage does, and that is waited out: then we are alive. */
export function disksAnswer(engine: EngineKind): boolean {
  return engine === "sync" || planesAnswer();
}
