// For tests of the simulated platform: subprocesses that are killed, and events of a handle.
import { join } from "node:path";
import type { Mapping } from "../../src/native/memory.ts";
import type {
  EventChannels,
  GrantShare,
  GrantTable,
  Platform,
  SharedPages,
} from "../../src/platform/platform.ts";
import { isReadableWithin } from "../support/descriptors.ts";

const EVENT_WAIT_MS = 5000;

export interface Victim<Said> {
  /** What it holds, as it said. */
  readonly said: Said;
  /** kill -9, and waits for its end. */
  kill(): Promise<void>;
}

/** Starts test/sim/platform-victim.ts and waits for what it says. */
export async function startVictim<Said>(
  dir: string,
  domid: number,
  mode: "share" | "map" | "copy" | "churn" | "notify-without-descriptors",
  ...numbers: readonly number[]
): Promise<Victim<Said>> {
  const script = join(import.meta.dir, "platform-victim.ts");
  const child = Bun.spawn([process.execPath, script, dir, String(domid), mode, ...numbers.map(String)], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "inherit",
  });
  const reader = child.stdout.getReader();
  let text = "";
  while (!text.includes("\n")) {
    const { done, value } = await reader.read();
    if (done) throw new Error(`the ${mode} process ended early`);
    text += new TextDecoder().decode(value);
  }
  const kill = async (): Promise<void> => {
    child.kill("SIGKILL");
    await child.exited;
    await reader.cancel();
  };
  return { said: JSON.parse(text) as Said, kill };
}

/** The ports that come next, without blocking the loop on which the host runs. */
export async function nextPorts(channels: EventChannels): Promise<number[]> {
  const ports = new Uint32Array(64);
  const deadline = performance.now() + EVENT_WAIT_MS;
  for (;;) {
    const count = channels.pending(ports);
    if (count > 0) return Array.from(ports.subarray(0, count));
    if (performance.now() > deadline) throw new Error("no event came");
    isReadableWithin(channels.fd, 1);
    await Bun.sleep(0);
  }
}

/** Maps grants through a handle of its own, which the mapping outlives. */
export function mapGrants(platform: Platform, ...args: Parameters<GrantTable["map"]>): Mapping {
  const table = platform.openGrantTable();
  try {
    return table.map(...args);
  } finally {
    table.close();
  }
}

/** Shares pages likewise. */
export function sharePages(platform: Platform, ...args: Parameters<GrantShare["share"]>): SharedPages {
  const sharer = platform.openGrantShare();
  try {
    return sharer.share(...args);
  } finally {
    sharer.close();
  }
}
