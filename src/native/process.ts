// What this process has the kernel do about itself (csrc/process.c).
import { check, shim } from "./shim.ts";

/** From now on the kernel kills this process when the one that started it ends, even if this one hangs by then. */
export function endWithParent(): void {
  check(shim.xt_process_end_with_parent(), "end with the process that started this one", "environment");
}
