// Runs a program that lives exactly as long as we do. A shell in a session of its own keeps it: when its control pipe
// closes, because we ask for the end or because we are gone, however we died, everything in the session gets SIGTERM,
// and SIGKILL if it is still there later. Ctrl-C on our terminal reaches neither, so that a guest's last flush does.
import { pause } from "../../core/deadline.ts";
import { relayLines } from "./messages.ts";
import { endGroup } from "./session.ts";

/** Until SIGKILL. An image that is closed in order is flushed first. */
const PATIENCE_S = 10;
/** How long we wait for the end of what it printed, which a process that left the session may hold open. */
const LAST_WORDS_MS = 500;

/**
 * Signals are caught, not ignored, because what is ignored stays ignored in the program. They are caught only once that
 * is started: its shell inherits the trap for a moment, in which it would lose the signal that asks it to end. The
 * descriptors from 3 on stay open in all of the session, and with them the locks on them. What dash says about signals
 * is dropped. PATH, which may lead nowhere, is the program's alone. A line kills the program alone, so that its end,
 * which storage may delay, is waited for.
 */
const KEEPER = `
exec 9<&0 8>&1 7>&2 </dev/null >/dev/null 2>&1
patience=$1
shift
/bin/sh -c 'LISTEN_PID=$$ exec "$@"' sh "$@" >&7 2>&7 7>&- 8>&- 9<&- &
program=$!
trap : TERM PIPE HUP INT
(
  trap : TERM
  read -r _ && kill -KILL $program && read -r _
  kill -TERM 0; command -p sleep $patience; kill -KILL 0
) <&9 7>&- 8>&- 9<&- &
echo $program >&8
while wait $program; status=$?; kill -0 $program; do :; done
echo $status >&8
kill -KILL 0
`;

export interface KeptOptions {
  /** Besides our own environment. */
  readonly environment?: Readonly<Record<string, string>> | undefined;
  /** From the request to end until it is killed. */
  readonly patienceS?: number;
}

export interface Ended {
  /** As in "it ended with status 1: its last words". */
  readonly how: string;
  /** False: there was no such program, or it may not be executed. */
  readonly wasStarted: boolean;
}

export interface KeptProcess {
  /** Resolves to how the program ended, once nothing of its session is left. */
  readonly ended: Promise<Ended>;
  /** Asks it to end. */
  stop(): void;
  /** Kills it. */
  kill(): void;
}

/**
 * Starts `argv` with `fds` as its descriptors from 3 on; the first one is announced as a listening socket, by
 * LISTEN_FDS and LISTEN_PID (sd_listen_fds(3)). `onLine` gets what it prints. Throws when no process can be started.
 */
export function keepProcess(
  argv: readonly string[],
  fds: readonly number[],
  onLine: (line: string) => void,
  { environment, patienceS = PATIENCE_S }: KeptOptions = {},
): KeptProcess {
  const child = Bun.spawn(["/bin/sh", "-c", KEEPER, "sh", String(patienceS), ...argv], {
    stdio: ["pipe", "pipe", "pipe", ...fds],
    env: { ...process.env, ...environment, LISTEN_FDS: "1" },
    // A session, and so a process group, of its own.
    detached: true,
  });
  const printed = relayLines(child.stderr, onLine, longOnes(argv));
  const end = async (): Promise<Ended> => {
    const status = child.stdout.text();
    await child.exited;
    await endGroup(child.pid);
    const last = await Promise.race([printed.last, pause(LAST_WORDS_MS).then(() => "")]);
    printed.cancel();
    const [, code] = (await status).split("\n");
    const how = describeStatus(code);
    return { how: last === "" ? how : `${how}: ${last}`, wasStarted: !isNotStarted(code) };
  };
  const kill = async (): Promise<void> => {
    await Promise.all([child.stdin.write("\n"), child.stdin.flush()]);
  };
  return {
    ended: end(),
    stop: () => void child.stdin.end(),
    // It may be over already.
    kill: () => void kill().catch(() => {}),
  };
}

/** Arguments that would hide what a message says beside them. */
function longOnes(argv: readonly string[]): string[] {
  return argv.filter(({ length }) => length > 100);
}

function describeStatus(text: string | undefined): string {
  if (text === undefined || text === "") return "was killed with its keeper";
  if (isNotStarted(text)) return "cannot be started";
  const status = Number(text);
  return status > 128 ? `was killed by signal ${status - 128}` : `ended with status ${status}`;
}

/** By what a shell says of a program that it does not find, or may not execute. */
function isNotStarted(text: string | undefined): boolean {
  return text === "126" || text === "127";
}
