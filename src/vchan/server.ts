// The server's end of a vchan: it grants the pages and an event channel, which its client then finds through
// xenstore. The unmap-notify makes the kernel notify the client when this process dies.
import type { Domid, EvtchnPort, GrantRef } from "../core/types.ts";
import { XentoolError } from "../core/errors.ts";
import type { Access, GrantShare, Platform, SharedPages, UnmapNotify } from "../platform/platform.ts";
import {
  encodeServerPage,
  layoutOf,
  ordersFault,
  VCHAN_CONNECTED,
  VCHAN_SRV_LIVE,
  type VchanOrders,
} from "../protocol/vchan.ts";
import { shim } from "../native/shim.ts";
import { VchanEndpoint } from "./endpoint.ts";

export interface VchanServerOptions {
  /** The domain of the client. */
  readonly peer: Domid;
  readonly orders: VchanOrders;
  /** False: a wait never polls before it sleeps. */
  readonly looks?: boolean | undefined;
  /** Where each ring's counters start: any value is valid, 0 is usual. */
  readonly leftCounter?: number;
  readonly rightCounter?: number;
}

export interface VchanServer {
  readonly endpoint: VchanEndpoint;
  /** What the client needs to know. */
  readonly ringRef: GrantRef;
  readonly port: EvtchnPort;
}

/**
 * Shares the rings with `peer` and does not wait for it yet. Fails with `usage` on impossible orders, with
 * `environment` when they exceed gntalloc's limit, with `io` when the platform provides no pages or no port.
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
  const shared = (count: number, access: Access, notify?: UnmapNotify): SharedPages => {
    const pages = sharePages(share, peer, count, access, notify);
    cleanup.defer(() => pages.mapping.close());
    return pages;
  };
  const { pageCount: leftCount } = layout.left;
  const { pageCount: rightCount } = layout.right;
  const left = leftCount === 0 ? undefined : shared(leftCount, "rw");
  const right = rightCount === 0 ? undefined : shared(rightCount, "r");
  const page = shared(1, "rw", { clearByteAt: VCHAN_SRV_LIVE, port });
  const grants = [...(left?.refs ?? []), ...(right?.refs ?? [])];
  encodeServerPage(page.mapping.bytes, { orders, grants, leftCounter, rightCounter });
  shim.xt_store8(page.mapping.bytes.subarray(VCHAN_SRV_LIVE), VCHAN_CONNECTED);
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
    looks: options.looks,
    release: () => owned.dispose(),
  });
  // A new binding may deliver an event at once, and stays masked until that event is taken.
  channels.unmask(port);
  return { endpoint, ringRef: page.refs[0], port };
}

function sharePages(
  share: GrantShare,
  peer: Domid,
  count: number,
  access: Access,
  notify: UnmapNotify | undefined,
): SharedPages {
  try {
    return share.share(peer, count, access, notify);
  } catch (error) {
    throw isLimit(error) ? pagesUsedUp(count, error) : error;
  }
}

function isLimit(error: unknown): boolean {
  return error instanceof XentoolError && error.context["errno"] === "ENOSPC";
}

function pagesUsedUp(count: number, cause: unknown): XentoolError {
  const message =
    `${count} more pages pass what this domain may grant: ` +
    "smaller rings may fit, or raise /sys/module/xen_gntalloc/parameters/limit";
  return new XentoolError("environment", message, { pages: count }, cause);
}
