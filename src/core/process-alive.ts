// Whether another process lives.
import { readFileSync } from "node:fs";
import { codeOf } from "./errors.ts";

/** One that has ended and that nobody has waited for yet (a zombie) is dead: it holds nothing any more. */
export function isProcessAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if (codeOf(error) !== "EPERM") return false;
  }
  try {
    // The name in brackets may have brackets and spaces in it.
    return !/\) [ZX] [^)]*$/.test(readFileSync(`/proc/${pid}/stat`, "latin1"));
  } catch {
    return true;
  }
}
