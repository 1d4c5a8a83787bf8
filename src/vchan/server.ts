// The server's end of a vchan: it grants the pages and an event channel that its client then finds through
// xenstore. The unmap-notify makes the kernel tell the client when this process dies.
import type { Domid, EvtchnPort, GrantRef } from "../core/types.ts";
import { XentoolError } from "../core/errors.ts";
import type { GrantShare, Platform, SharedPages } from "../platform/platform.ts";
import {
  encodeServerPage,
  layoutOf,
  ordersFault,
  VCHAN_SRV_LIVE,
  type VchanOrders,
} from "../protocol/vchan.ts";
import { VchanEndpoint } from "./endpoint.ts";

export interface VchanServerOptions {
  /** The domain of the client. */
  readonly peer: Domid;
  readonly orders: VchanOrders;
  readonly spinUsMax?: number | undefined;
  /** Where each ring's counters start: anywhere is right, 0 is usual. */
  readonly leftCounter?: number;
  readonly rightCounter?: number;
}

export interface VchanServer {
  readonly endpoint: VchanEndpoint;
  /** What the client has to be told. */
  readonly ringRef: GrantRef;
  readonly port: EvtchnPort;
}

/**
 * Shares the rings with `peer` and waits for nobody yet. Fails with `usage` on impossible orders, with `io`
 * or `environment` when the platform gives no pages (gntalloc's limit) or no port.
 */
export function openVchanServer(platform: Platform, options: VchanServerOptions): VchanServer {
  const { peer, orders, leftCounter = 0, rightCounter = 0 } = options;
  const fault = ordersFault(orders);
  if (fault !== undefined) throw new XentoolError("usage", `no such vchan: ${fault}`);
  const layout = layoutOf(orders);
  using cleanup = new DisposableStack();
  const channels = platform.openEventChannels();
  cleanup.defer(() => channels.close());
  const share = platform.openGrantShare();
  cleanup.defer(() => share.close());
  const port = channels.bindUnbound(peer);
  cleanup.defer(() => channels.unbind(port));
  const left = sharePages(cleanup, share, peer, layout.left.pageCount, "rw");
  const right = sharePages(cleanup, share, peer, layout.right.pageCount, "r");
  const page = share.share(peer, 1, "rw", { clearByteAt: VCHAN_SRV_LIVE, port });
  cleanup.defer(() => page.mapping.close());
  const grants = [...(left?.refs ?? []), ...(right?.refs ?? [])];
  encodeServerPage(page.mapping.bytes, { orders, grants, leftCounter, rightCounter });
  const owned = cleanup.move();
  const endpoint = new VchanEndpoint({
    role: "server",
    peer,
    page: page.mapping,
    layout,
    leftPages: left?.mapping,
    rightPages: right?.mapping,
    channels,
    port,
    readCounter: leftCounter,
    writeCounter: rightCounter,
    spinUsMax: options.spinUsMax,
    release: () => owned.dispose(),
  });
  // A binding may deliver an event at once and stays masked until that is taken.
  channels.unmask(port);
  return { endpoint, ringRef: page.refs[0] as GrantRef, port };
}

function sharePages(
  cleanup: DisposableStack,
  share: GrantShare,
  peer: Domid,
  count: number,
  access: "r" | "rw",
): SharedPages | undefined {
  if (count === 0) return undefined;
  const pages = share.share(peer, count, access);
  cleanup.defer(() => pages.mapping.close());
  return pages;
}
