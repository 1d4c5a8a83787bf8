// The simulated hosts on this machine that we may see: those that run, wherever their directories are, and what killed
// ones left behind in the default place or where XENTOOL_SIM points.
import { XentoolError } from "../core/errors.ts";
import { hostStatus } from "./daemon.ts";
import { candidateDirectories, holdsDeadHost, hostPid } from "./directory.ts";
import { LIST_ANSWER_MS } from "./bounds.ts";

export interface FoundHost {
  readonly dir: string;
  /** dead: its process is gone, and `sim stop --dir` removes what it left. silent: it is there, but does not answer. */
  readonly state: "running" | "silent" | "dead";
  readonly pid: number;
  /** Empty unless it runs. */
  readonly domains: readonly { readonly domid: number; readonly name: string }[];
}

export async function findHosts(timeoutMs = LIST_ANSWER_MS): Promise<FoundHost[]> {
  const found = await Promise.all(
    candidateDirectories(process.env["XENTOOL_SIM"]).map((dir) => lookAt(dir, timeoutMs)),
  );
  return found.filter((host) => host !== undefined);
}

async function lookAt(dir: string, timeoutMs: number): Promise<FoundHost | undefined> {
  const pid = hostPid(dir);
  if (pid === undefined) return undefined;
  if (holdsDeadHost(dir)) return { dir, state: "dead", pid, domains: [] };
  try {
    const { domains } = await hostStatus(dir, timeoutMs);
    return { dir, state: "running", pid, domains };
  } catch (error) {
    if (!(error instanceof XentoolError)) throw error;
    return error.kind === "timeout" ? { dir, state: "silent", pid, domains: [] } : undefined;
  }
}
