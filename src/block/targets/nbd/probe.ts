// Asks an NBD server once, from the control side, what its export is. Here a host's name is resolved, because a data
// plane cannot.
import { onAbort, unlessAborted, within } from "../../../core/deadline.ts";
import { XentoolError } from "../../../core/errors.ts";
import { addressesOf } from "../../../core/host-names.ts";
import { NbdClientHandshake, type SeenExport } from "./handshake.ts";
import type { NbdAddress } from "./uri.ts";

const PATIENCE_MS = 10_000;

/** Throws `io` when the host has no address, and `cancelled` once `stop` fires: a resolver may take minutes. */
export async function resolveHost(
  to: NbdAddress,
  stop?: AbortSignal,
  patienceMs = PATIENCE_MS,
): Promise<NbdAddress> {
  if (to.port === undefined) return to;
  const failed = (why: unknown): XentoolError =>
    new XentoolError("io", `cannot find the NBD server's host ${to.address}`, {}, why);
  const asked = addressesOf(to.address).catch((error: unknown) => {
    throw failed(error);
  });
  const late = (): Error => failed(new Error(`no answer for ${patienceMs} ms`));
  const found = await unlessAborted(within(patienceMs, asked, late), stop);
  if (found === undefined)
    throw new XentoolError("cancelled", `stopped before the NBD server's host ${to.address} was found`);
  return { ...to, address: found[0] as string };
}

/**
 * `to` has a number or a path. Throws `io`, `protocol` or `environment`, and `cancelled` once `stop` fires.
 * `patienceMs`: how long it may take; Infinity: as long as it takes.
 */
export async function probeExport(
  to: NbdAddress,
  stop?: AbortSignal,
  patienceMs = PATIENCE_MS,
): Promise<SeenExport> {
  const handshake = new NbdClientHandshake(to.exportName);
  const { promise, resolve, reject } = Promise.withResolvers<SeenExport>();
  let pending = Buffer.alloc(0);
  const take = (socket: Bun.Socket, bytes: Uint8Array): void => {
    pending = Buffer.concat([pending, bytes]);
    try {
      for (;;) {
        const { consumed, reply, seen } = handshake.step(pending);
        if (reply.length > 0) socket.write(reply);
        if (seen !== undefined) resolve(seen);
        if (consumed === 0 || seen !== undefined) return;
        pending = pending.subarray(consumed);
      }
    } catch (error) {
      reject(error);
    }
  };
  const failed = (error: unknown): void =>
    reject(new XentoolError("io", `cannot reach the NBD server at ${to.address}`, {}, error));
  using _ = onAbort(stop, () =>
    reject(new XentoolError("cancelled", `stopped before the NBD server at ${to.address} had answered`)),
  );
  const patience =
    patienceMs === Infinity
      ? undefined
      : setTimeout(() => failed(new Error(`no answer for ${patienceMs} ms`)), patienceMs);
  const socket = {
    data: take,
    error: (_: Bun.Socket, error: Error) => failed(error),
    connectError: (_: Bun.Socket, error: Error) => failed(error),
    close: () => failed(new Error("the server closed the connection")),
  };
  const { address, port } = to;
  const connection =
    port === undefined
      ? Bun.connect({ unix: address, socket })
      : Bun.connect({ hostname: address, port, socket });
  connection.catch(failed);
  try {
    return await promise;
  } finally {
    clearTimeout(patience);
    connection.then(
      (it) => it.terminate(),
      () => {},
    );
  }
}
