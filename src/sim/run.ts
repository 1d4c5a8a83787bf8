// A simulated host for the duration of one command: `xentool sim run -- CMD`.
import { constants } from "node:os";
import { XentoolError } from "../core/errors.ts";
import type { Domid } from "../core/types.ts";
import { domidFromEnv } from "../platform/open.ts";
import { SimPlatform } from "../platform/sim.ts";
import { SimHost, type SimHostOptions } from "./host.ts";
import { endUsers } from "./users.ts";
import { installLibraries, programEnvironment } from "./programs.ts";

/** Forwarded to the command. A terminal itself sends SIGINT and SIGQUIT to the command. */
const PASSED_ON = ["SIGTERM", "SIGHUP"] as const;
const LEFT_TO_THE_COMMAND = ["SIGINT", "SIGQUIT"] as const;

/** Keeps signals from ending us before the host is stopped, and forwards to the command those meant for it. */
class SignalsForCommand implements Disposable {
  #child: Bun.Subprocess | undefined;
  #early: NodeJS.Signals | undefined;
  readonly #late = new AbortController();
  readonly #passOn = (signal: NodeJS.Signals): void => {
    if (this.#child === undefined) this.#early = signal;
    else if (hasEnded(this.#child)) this.#late.abort();
    else this.#child.kill(signal);
  };
  readonly #ignore = (): void => {
    if (this.#child !== undefined && hasEnded(this.#child)) this.#late.abort();
  };

  /** Fires at the first signal that comes when the command has ended. */
  get late(): AbortSignal {
    return this.#late.signal;
  }

  constructor() {
    for (const signal of PASSED_ON) process.on(signal, this.#passOn);
    for (const signal of LEFT_TO_THE_COMMAND) process.on(signal, this.#ignore);
  }

  /** From now on `child` is the command. It also gets a signal that arrived before it was started. */
  attach(child: Bun.Subprocess): void {
    this.#child = child;
    if (this.#early !== undefined) child.kill(this.#early);
  }

  [Symbol.dispose](): void {
    for (const signal of PASSED_ON) process.off(signal, this.#passOn);
    for (const signal of LEFT_TO_THE_COMMAND) process.off(signal, this.#ignore);
  }
}

function hasEnded({ exitCode, signalCode }: Bun.Subprocess): boolean {
  return exitCode !== null || signalCode !== null;
}

/**
 * Starts a host, runs `command` on it (programEnvironment) with our stdio, ends what still uses the host then, and
 * always stops the host. Signals are handled from the call on. Returns the command's exit status, or 128 + N if signal
 * N ended it. Fails with `environment` if the command cannot be started.
 */
export async function runInHost(command: readonly string[], options: SimHostOptions): Promise<number> {
  using signals = new SignalsForCommand();
  await using host = await SimHost.start(options);
  installLibraries(host.dir);
  const status = await runToEnd(command, host.dir, domidFromEnv(process.env) ?? 0, signals);
  await endUsers(host, signals.late);
  return status;
}

/** Runs `command` as domain `domid` of the host in `dir`; otherwise like `runInHost`. Fails with `environment`. */
export async function runAsDomain(command: readonly string[], dir: string, domid: Domid): Promise<number> {
  new SimPlatform({ name: "sim", dir, domid }).close();
  using signals = new SignalsForCommand();
  return await runToEnd(command, dir, domid, signals);
}

async function runToEnd(
  command: readonly string[],
  dir: string,
  domid: number,
  signals: SignalsForCommand,
): Promise<number> {
  const child = startCommand(command, programEnvironment(dir, domid, process.env));
  signals.attach(child);
  await child.exited;
  const { exitCode, signalCode } = child;
  return signalCode === null ? (exitCode ?? 0) : 128 + signalNumber(signalCode);
}

function signalNumber(signal: NodeJS.Signals | number): number {
  return typeof signal === "number" ? signal : constants.signals[signal];
}

function startCommand(command: readonly string[], env: Readonly<Record<string, string>>): Bun.Subprocess {
  try {
    return Bun.spawn([...command], {
      env: { ...process.env, ...env },
      stdin: "inherit",
      stdout: "inherit",
      stderr: "inherit",
    });
  } catch (error) {
    throw new XentoolError("environment", `cannot run ${command[0]}`, {}, error);
  }
}
