// The client's end of a vchan: it maps what a server granted. Everything in the page is first checked in a private
// copy. A server that is dead or already taken is reported differently from one that lies.
import { XentoolError } from "../core/errors.ts";
import type { Domid, EvtchnPort, GrantRef } from "../core/types.ts";
import type { Mapping } from "../native/memory.ts";
import { shim } from "../native/shim.ts";
import type { EventChannels, GrantTable, Platform } from "../platform/platform.ts";
import {
  decodeGrants,
  decodePage,
  endWordsOf,
  layoutOf,
  ordersFault,
  speaksOfEnd,
  VCHAN_CLI_LIVE,
  VCHAN_CONNECTED,
  VCHAN_END_SPOKEN,
  VCHAN_NOT_CONNECTED,
  VCHAN_NOTIFY_WRITE,
  VCHAN_SRV_LIVE,
  VCHAN_SRV_NOTIFY,
  type VchanPage,
} from "../protocol/vchan.ts";
import { VchanEndpoint } from "./endpoint.ts";

export interface VchanClientOptions {
  /** The domain of the server. */
  readonly peer: Domid;
  /** What the server published. */
  readonly ringRef: GrantRef;
  readonly port: EvtchnPort;
  /** False: a wait never polls before it sleeps. */
  readonly looks?: boolean | undefined;
}

/** A server's keys lead nowhere: it died or closed. Newer keys may work. */
export const NO_SERVER = "no-server";
/** Another client has the server. It may let that client go, and offer new rings. */
export const SERVER_BUSY = "server-busy";
/** The server's last client is gone, and it is about to end with that one: either for good, or to offer new rings. */
export const BETWEEN_CLIENTS = "between-clients";

/**
 * Connects to a server. Fails with `environment` and `context.reason` NO_SERVER when nobody serves there any more,
 * SERVER_BUSY when another client is connected, BETWEEN_CLIENTS when that one has just gone; with `protocol` when the
 * page makes no sense.
 */
export function openVchanClient(platform: Platform, options: VchanClientOptions): VchanEndpoint {
  const { peer } = options;
  using cleanup = new DisposableStack();
  const channels = platform.openEventChannels();
  cleanup.defer(() => channels.close());
  const table = platform.openGrantTable();
  cleanup.defer(() => table.close());
  const port = bindPort(channels, table, options);
  cleanup.defer(() => channels.unbind(port));
  // Request the unmap-notify right away, so that the server learns of it if we die from here on.
  const page = cleanup.use(
    orNoServer(peer, () => table.map(peer, [options.ringRef], "rw", { clearByteAt: VCHAN_CLI_LIVE, port })),
  );
  // Check this first: the rest is valid only then. The page may belong to a server that is still starting.
  if (shim.xt_load8(page.bytes.subarray(VCHAN_SRV_LIVE)) !== VCHAN_CONNECTED)
    throw noServer(peer, "it has closed");
  const copy = page.bytes.slice();
  const found = decodePage(copy);
  expectServer(peer, found);
  const layout = layoutOf(found.orders);
  expectFreshRings(peer, found, endWordsOf(copy, layout).server);
  // From here on the server may learn that we are gone. It must not take that for the end of our stream.
  Atomics.store(page.words, layout.endWordsAt / 4 + 1, VCHAN_END_SPOKEN);
  const grants = decodeGrants(copy, layout);
  const leftPages = orNoServer(peer, () => mapPages(cleanup, table, peer, grants.left, "rw"));
  const rightPages = orNoServer(peer, () => mapPages(cleanup, table, peer, grants.right, "r"));
  const owned = cleanup.move();
  const endpoint = new VchanEndpoint({
    role: "client",
    peer,
    page,
    layout,
    leftPages,
    rightPages,
    channels,
    port,
    readCounter: found.rightCons,
    writeCounter: found.leftProd,
    looks: options.looks,
    release: () => owned.dispose(),
  });
  try {
    channels.unmask(port);
    endpoint.sample();
    shim.xt_fetch_or8(page.bytes.subarray(VCHAN_SRV_NOTIFY), VCHAN_NOTIFY_WRITE);
    shim.xt_store8(page.bytes.subarray(VCHAN_CLI_LIVE), VCHAN_CONNECTED);
    endpoint.notifyPeer();
    return endpoint;
  } catch (error) {
    endpoint.close();
    throw error;
  }
}

/** A bound port refuses another client, and so does one that is gone. The page tells which it is. */
function bindPort(channels: EventChannels, table: GrantTable, options: VchanClientOptions): EvtchnPort {
  const { peer, ringRef, port } = options;
  try {
    return channels.bindInterdomain(peer, port);
  } catch (error) {
    throw isServed(table, peer, ringRef)
      ? taken(peer)
      : noServer(peer, "nobody answers there any more", error);
  }
}

function isServed(table: GrantTable, peer: Domid, ringRef: GrantRef): boolean {
  try {
    using page = table.map(peer, [ringRef], "r");
    return shim.xt_load8(page.bytes.subarray(VCHAN_SRV_LIVE)) === VCHAN_CONNECTED;
  } catch {
    return false;
  }
}

function expectServer(peer: Domid, page: VchanPage): void {
  if (page.serverLive !== VCHAN_CONNECTED) throw noServer(peer, "it has closed");
  if (page.clientLive === VCHAN_CONNECTED) throw taken(peer);
  const fault = ordersFault(page.orders);
  if (fault !== undefined)
    throw new XentoolError("protocol", `domain ${peer} offers a vchan that cannot be: ${fault}`, {
      domid: peer,
      ...page.orders,
    });
}

/**
 * A libxenvchan server may take one client after another on the same rings. Ours never does: if its last client is
 * gone, it has yet to hand on what that one sent, and has not published its next rings.
 */
function expectFreshRings(peer: Domid, page: VchanPage, serverEndWord: number): void {
  if (speaksOfEnd(serverEndWord) && page.clientLive !== VCHAN_NOT_CONNECTED)
    throw busy(peer, BETWEEN_CLIENTS, "it has not ended with its last client yet");
}

function mapPages(
  cleanup: DisposableStack,
  table: GrantTable,
  peer: Domid,
  refs: readonly number[],
  access: "r" | "rw",
): Mapping | undefined {
  return refs.length === 0 ? undefined : cleanup.use(table.map(peer, refs, access));
}

function orNoServer<T>(peer: Domid, attempt: () => T): T {
  try {
    return attempt();
  } catch (error) {
    throw noServer(peer, "nobody answers there any more", error);
  }
}

function noServer(peer: Domid, why: string, cause?: unknown): XentoolError {
  const message = `the vchan server in domain ${peer} cannot be used: ${why}`;
  return new XentoolError("environment", message, { domid: peer, reason: NO_SERVER }, cause);
}

function taken(peer: Domid): XentoolError {
  return busy(peer, SERVER_BUSY, "it serves one client at a time");
}

function busy(peer: Domid, reason: string, why: string): XentoolError {
  const message = `the vchan server in domain ${peer} is busy: ${why}; --wait waits for a turn`;
  return new XentoolError("environment", message, { domid: peer, reason });
}
