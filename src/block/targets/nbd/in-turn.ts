// The addresses of an NBD server's host, tried one after the other: a name may have some at which no server is, as one
// of IPv6 where the server has IPv4 only. Where it was found is tried first from then on.
import { unlessAborted, within } from "../../../core/deadline.ts";
import { XentoolError } from "../../../core/errors.ts";
import { addressesOf } from "../../../core/host-names.ts";
import type { NbdAddress } from "./uri.ts";

const LOOKUP_MS = 10_000;
/** How long an address may take if there is another one: enough for a packet that is lost. */
const EACH_MS = 2000;

/** By name, the address where the server was last. */
const reached = new Map<string, string>();

export interface InTurn {
  readonly stop?: AbortSignal | undefined;
  readonly lookupMs?: number;
  /** How long the last address, or the only one, may take. */
  readonly patienceMs?: number;
}

/**
 * Resolves with what `reach` does for the first address at which it succeeds. Rejects as it does for the last one, or
 * at once if it reached a server that will not have us. Rejects as `resolveHost` does.
 */
export async function inTurn<T>(
  to: NbdAddress,
  reach: (at: NbdAddress, patienceMs: number) => Promise<T>,
  { stop, lookupMs, patienceMs = Infinity }: InTurn = {},
): Promise<T> {
  const found = await resolveHost(to, stop, lookupMs);
  const best = reached.get(to.address);
  const sorted = [...found.filter((it) => it === best), ...found.filter((it) => it !== best)];
  for (let at = 0; ; at++) {
    const address = sorted[at];
    const isLast = at === sorted.length - 1;
    try {
      const result = await reach({ ...to, address }, isLast ? patienceMs : Math.min(EACH_MS, patienceMs));
      if (sorted.length > 1) reached.set(to.address, address);
      return result;
    } catch (error) {
      if (isLast || !(error instanceof XentoolError && error.kind === "io")) throw error;
    }
  }
}

/**
 * All addresses of the host, or the path of its socket. Throws `io` when it has none, and `cancelled` once `stop`
 * fires: a resolver may take minutes.
 */
export async function resolveHost(
  to: NbdAddress,
  stop?: AbortSignal,
  patienceMs = LOOKUP_MS,
): Promise<readonly string[]> {
  if (to.port === undefined) return [to.address];
  const failed = (why: unknown): XentoolError =>
    new XentoolError("io", `cannot find the NBD server's host ${to.address}`, {}, why);
  const asked = addressesOf(to.address).catch((error: unknown) => {
    throw failed(error);
  });
  const late = (): Error => failed(new Error(`no answer for ${patienceMs} ms`));
  const found = await unlessAborted(within(patienceMs, asked, late), stop);
  if (found === undefined)
    throw new XentoolError("cancelled", `stopped before the NBD server's host ${to.address} was found`);
  return found;
}
