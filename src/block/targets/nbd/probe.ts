// Asks an NBD server once, from the control side, what its export is.
import { closeSync } from "node:fs";
import { onAbort } from "../../../core/deadline.ts";
import { XentoolError } from "../../../core/errors.ts";
import { errnoText } from "../../../native/shim.ts";
import { connectWithin } from "./dial.ts";
import { NbdClientHandshake, type SeenExport } from "./handshake.ts";
import { inTurn } from "./in-turn.ts";
import type { NbdAddress } from "./uri.ts";

const PATIENCE_MS = 10_000;

/** Asks the server at the first of its addresses where there is one. Throws as `resolveHost` and `probeExport` do. */
export function probeServer(to: NbdAddress, stop?: AbortSignal): Promise<SeenExport> {
  return inTurn(
    to,
    async (at, patienceMs) => {
      if (patienceMs !== Infinity) await expectSomebody(at, patienceMs);
      return probeExport(at, stop);
    },
    { stop },
  );
}

/** Throws `io` when nobody is there. Nothing is left of the connection, which would keep the process from its end. */
async function expectSomebody(at: NbdAddress, patienceMs: number): Promise<void> {
  const fd = await connectWithin(patienceMs, at);
  if (fd < 0) throw new XentoolError("io", `cannot reach the NBD server at ${at.address}: ${errnoText(fd)}`);
  closeSync(fd);
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
