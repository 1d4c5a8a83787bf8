// A simulated host for the time of one command: `xentool sim run -- CMD`.
import { constants } from "node:os";
import { XentoolError } from "../core/errors.ts";
import { SimHost, type SimHostOptions } from "./host.ts";

/** Passed on to the command. A terminal sends its SIGINT and SIGQUIT to the command itself. */
const PASSED_ON = ["SIGTERM", "SIGHUP"] as const;
const LEFT_TO_THE_COMMAND = ["SIGINT", "SIGQUIT"] as const;

/**
 * Starts a host, runs `command` with XENTOOL_SIM naming it and our stdio, and stops the host whatever
 * happens. Gives the command's exit status, 128 + N when signal N ended it. Fails with `environment` when
 * the command cannot be started.
 */
export async function runInHost(command: readonly string[], options: SimHostOptions): Promise<number> {
  const host = await SimHost.start(options);
  try {
    return await runCommand(command, host.dir);
  } finally {
    await host.stop();
  }
}

async function runCommand(command: readonly string[], dir: string): Promise<number> {
  const child = startCommand(command, dir);
  const passOn = (signal: NodeJS.Signals): void => child.kill(signal);
  const ignore = (): void => {};
  for (const signal of PASSED_ON) process.on(signal, passOn);
  for (const signal of LEFT_TO_THE_COMMAND) process.on(signal, ignore);
  try {
    await child.exited;
  } finally {
    for (const signal of PASSED_ON) process.off(signal, passOn);
    for (const signal of LEFT_TO_THE_COMMAND) process.off(signal, ignore);
  }
  const { exitCode, signalCode } = child;
  return signalCode === null ? (exitCode ?? 0) : 128 + signalNumber(signalCode);
}

function signalNumber(signal: NodeJS.Signals | number): number {
  return typeof signal === "number" ? signal : constants.signals[signal];
}

function startCommand(command: readonly string[], dir: string): Bun.Subprocess {
  try {
    return Bun.spawn([...command], {
      env: { ...process.env, XENTOOL_SIM: dir },
      stdin: "inherit",
      stdout: "inherit",
      stderr: "inherit",
    });
  } catch (error) {
    throw new XentoolError("environment", `cannot run ${command[0]}`, {}, error);
  }
}
