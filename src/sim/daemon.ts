// A simulated host in the background: starting it as its own process, querying it, stopping it. After the start its
// messages go to host.log in its directory.
import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, openSync, readSync, rmSync } from "node:fs";
import { join } from "node:path";
import { onAbort } from "../core/deadline.ts";
import { kindOf, XentoolError } from "../core/errors.ts";
import { askHost } from "./control.ts";
import {
  holdsDeadHost,
  HOST_LOG,
  hostFilesIn,
  makeDirectory,
  removeHostFiles,
  removeIfEmpty,
} from "./directory.ts";
import { SimHost, type SimHostOptions, type SimStatus } from "./host.ts";
import { installLibraries } from "./programs.ts";
import { DAEMON_LOG_BYTES_MAX, DAEMON_START_MS, DAEMON_STOP_STEP_MS } from "./bounds.ts";

export interface DaemonReady {
  readonly dir: string;
  readonly pid: number;
}

interface StartWait {
  readonly stop: AbortSignal;
  /** How long the host may take to be ready. */
  readonly timeoutMs: number | undefined;
}

/**
 * Starts `command` with `--dir DIR` appended, a process that calls `serveInForeground`, and waits until it is ready.
 * Fails with `environment` and the process's own message if it does not come up, with `timeout` if that takes too long,
 * with `cancelled` if `stop` fires before; nothing of it remains then.
 */
export async function startDaemon(
  command: readonly string[],
  dir: string | undefined,
  { stop, timeoutMs = DAEMON_START_MS }: StartWait,
): Promise<DaemonReady> {
  const { path: home, isNew } = makeDirectory(dir);
  const log = openLog(home);
  try {
    const [program, ...rest] = command as readonly [string, ...string[]];
    const child = spawn(program, [...rest, "--dir", home], {
      detached: true,
      stdio: ["ignore", "pipe", log],
    });
    return await readiness(child, home, timeoutMs, stop);
  } catch (error) {
    // The process cleans up after itself unless it was killed.
    if (holdsDeadHost(home)) removeHostFiles(home);
    else rmSync(join(home, HOST_LOG), { force: true });
    if (isNew) removeIfEmpty(home);
    if (["cancelled", "timeout"].includes(kindOf(error))) throw error;
    const message = `the simulated host did not start: ${readLog(log)}`;
    throw new XentoolError("environment", message, { dir: home }, error);
  } finally {
    closeSync(log);
  }
}

/** Of several starters that found the directory empty, only the one that creates the log goes on. */
function openLog(dir: string): number {
  try {
    return openSync(join(dir, HOST_LOG), "ax+", 0o600);
  } catch (error) {
    const message = `${dir}: no log can be made there, or another host has it; choose another directory`;
    throw new XentoolError("environment", message, { dir }, error);
  }
}

/** The process's output, readable even though the process removed the file when it ended. */
function readLog(fd: number): string {
  const text = Buffer.alloc(DAEMON_LOG_BYTES_MAX);
  return text.toString("utf8", 0, readSync(fd, text, 0, text.length, 0)).trim();
}

/** Resolves with the child's first line of output, then lets the child run on its own, unless `stop` has fired. */
async function readiness(
  child: ChildProcess,
  dir: string,
  timeoutMs: number,
  stop: AbortSignal | undefined,
): Promise<DaemonReady> {
  const { promise, resolve: ready, reject } = Promise.withResolvers<string>();
  let text = "";
  child.stdout?.on("data", (chunk: Buffer) => {
    text += chunk.toString();
    if (text.includes("\n") && stop?.aborted !== true) ready(text);
  });
  child.once("error", reject);
  child.once("exit", (code, signal) => {
    const late = new XentoolError("timeout", `the simulated host was not ready within ${timeoutMs} ms`);
    const ended = new XentoolError("environment", `its process ended with status ${code ?? signal}`);
    const stopped = new XentoolError("cancelled", "stopped before the simulated host was ready");
    reject(stop?.aborted === true ? stopped : child.killed ? late : ended);
  });
  using _ = onAbort(stop, () => child.kill("SIGTERM"));
  const timer = setTimeout(() => child.kill("SIGKILL"), timeoutMs);
  try {
    const { pid } = JSON.parse(await promise) as { pid: number };
    return { dir, pid };
  } finally {
    clearTimeout(timer);
    child.stdout?.destroy();
    child.unref();
  }
}

/** Runs a host in this process until it is asked to stop or `stop` fires. Calls `onReady` once it is ready. */
export async function serveInForeground(
  options: SimHostOptions,
  stop: AbortSignal,
  onReady: (ready: DaemonReady) => void,
): Promise<void> {
  await using host = await SimHost.start(options);
  installLibraries(host.dir);
  onReady({ dir: host.dir, pid: process.pid });
  using _ = onAbort(stop, () => host.stop());
  await host.stopped;
}

/** The status of the host in `dir` and what it has in use. Fails as `askHost` does. */
export async function hostStatus(dir: string, timeoutMs?: number): Promise<SimStatus> {
  return (await askHost(dir, { op: "status" }, timeoutMs)) as SimStatus;
}

/** A host that is dying at this moment hangs up; the second attempt then finds none. */
async function askToStop(dir: string, timeoutMs: number): Promise<void> {
  try {
    await askHost(dir, { op: "stop" }, timeoutMs);
  } catch (error) {
    if (!(error instanceof XentoolError) || error.kind !== "io") throw error;
    await Bun.sleep(DAEMON_STOP_STEP_MS);
    await askHost(dir, { op: "stop" }, timeoutMs);
  }
}

/**
 * Stops the host in `dir` and waits until it is gone. If its process is dead already, only its files are removed. Fails
 * with `environment` if there is no host, `timeout` if it does not end.
 */
export async function stopHost(dir: string, timeoutMs = DAEMON_START_MS): Promise<"stopped" | "was dead"> {
  const deadline = performance.now() + timeoutMs;
  try {
    await askToStop(dir, timeoutMs);
  } catch (error) {
    const nobodyThere = error instanceof XentoolError && error.kind === "environment";
    if (!nobodyThere || !holdsDeadHost(dir)) throw error;
    removeHostFiles(dir);
    removeIfEmpty(dir);
    return "was dead";
  }
  while (hostFilesIn(dir).length > 0) {
    if (performance.now() > deadline)
      throw new XentoolError("timeout", `the simulated host in ${dir} did not end`);
    await Bun.sleep(DAEMON_STOP_STEP_MS);
  }
  removeIfEmpty(dir);
  return "stopped";
}
