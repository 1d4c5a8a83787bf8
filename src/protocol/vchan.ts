// The vchan protocol as bytes: the shared page, ring orders, the list of grants and the position of each ring. Source:
// xen/include/public/io/libxenvchan.h; libxenvchan's init.c for how a server chooses its orders.
import { PAGE_SIZE } from "../core/types.ts";

// struct vchan_interface, native byte order (little-endian on x86 and Arm). "left" is client to server.
export const VCHAN_LEFT_CONS = 0;
export const VCHAN_LEFT_PROD = 4;
export const VCHAN_RIGHT_CONS = 8;
export const VCHAN_RIGHT_PROD = 12;
export const VCHAN_LEFT_ORDER = 16;
export const VCHAN_RIGHT_ORDER = 18;
export const VCHAN_CLI_LIVE = 20;
export const VCHAN_SRV_LIVE = 21;
/** Bits that the client must signal: the server sets them, the client clears them. */
export const VCHAN_CLI_NOTIFY = 22;
/** Bits that the server must signal: the client sets them, the server clears them. */
export const VCHAN_SRV_NOTIFY = 23;
export const VCHAN_GRANTS = 24;

/** "Notify me when you have written"; 2 would be "… when you have read". */
export const VCHAN_NOTIFY_WRITE = 1;

// Values of the live bytes.
export const VCHAN_GONE = 0;
export const VCHAN_CONNECTED = 1;
/** Only in cli_live: no client yet. */
export const VCHAN_NOT_CONNECTED = 2;

const VCHAN_ORDER_MIN = 10;
export const VCHAN_ORDER_MAX = 20;
/** Rings of this order and above have their own pages. */
const ORDER_EXTERNAL = 12;
const SMALL_RING_BYTES = 1024;
const LARGE_RING_BYTES = 2048;

// Our extension, in bytes that libxenvchan leaves zero: each end has a word that says "I can tell the end of my stream
// from my closing" and then "this was the end of my stream" or "I had to close before the end". See docs/vchan.md.
export const VCHAN_END_SPOKEN = 0x3065_7478;
export const VCHAN_END_REACHED = 0x3165_7478;
export const VCHAN_END_CUT = 0x3265_7478;
const END_WORDS_BYTES = 8;

export interface VchanOrders {
  /** log2 of the size in bytes of the ring from client to server. */
  readonly left: number;
  /** log2 of the size in bytes of the ring from server to client. */
  readonly right: number;
}

export interface RingPlace {
  readonly sizeBytes: number;
  /** Offset in the shared page; undefined for a ring with its own pages. */
  readonly offsetInPage: number | undefined;
  /** Number of its own pages. */
  readonly pageCount: number;
}

export interface VchanLayout {
  readonly left: RingPlace;
  readonly right: RingPlace;
  /** Offset of the two end words in the shared page: the server's, then the client's. */
  readonly endWordsAt: number;
}

/**
 * Describes what is wrong with a pair of orders, or returns undefined. Libxenvchan does not detect a grant list that is
 * too long.
 */
export function ordersFault(orders: VchanOrders): string | undefined {
  for (const [name, order] of Object.entries(orders) as [string, number][])
    if (!Number.isInteger(order) || order < VCHAN_ORDER_MIN || order > VCHAN_ORDER_MAX)
      return `the ${name} ring's order is ${order}, outside ${VCHAN_ORDER_MIN} to ${VCHAN_ORDER_MAX}`;
  if (orders.left === orders.right && orders.left < ORDER_EXTERNAL)
    return `both rings have order ${orders.left} and would lie in the same place`;
  const end = VCHAN_GRANTS + 4 * (pagesOf(orders.left) + pagesOf(orders.right));
  if (end > headerBytes(orders))
    return `orders ${orders.left} and ${orders.right} make the list of grants reach to byte ${end}, into a ring`;
  return undefined;
}

/** Where everything lies. `orders` must be valid (see ordersFault). */
export function layoutOf(orders: VchanOrders): VchanLayout {
  return {
    left: placeOf(orders.left),
    right: placeOf(orders.right),
    endWordsAt: headerBytes(orders) - END_WORDS_BYTES,
  };
}

/**
 * The orders that libxenvchan's server chooses for rings of at least these sizes, or undefined if a size exceeds 1 MiB.
 * If both are small enough, they share the one page.
 */
export function chooseOrders(leftBytes: number, rightBytes: number): VchanOrders | undefined {
  const longest = 2 ** VCHAN_ORDER_MAX;
  if (!(leftBytes >= 0 && leftBytes <= longest && rightBytes >= 0 && rightBytes <= longest)) return undefined;
  if (leftBytes <= SMALL_RING_BYTES && rightBytes <= LARGE_RING_BYTES) return { left: 10, right: 11 };
  if (leftBytes <= LARGE_RING_BYTES && rightBytes <= SMALL_RING_BYTES) return { left: 11, right: 10 };
  if (leftBytes <= LARGE_RING_BYTES) return { left: 11, right: externalOrder(rightBytes) };
  if (rightBytes <= LARGE_RING_BYTES) return { left: externalOrder(leftBytes), right: 11 };
  return { left: externalOrder(leftBytes), right: externalOrder(rightBytes) };
}

/** The shared page as a client finds it; none of it has been checked. */
export interface VchanPage {
  readonly orders: VchanOrders;
  readonly leftCons: number;
  readonly leftProd: number;
  readonly rightCons: number;
  readonly rightProd: number;
  readonly clientLive: number;
  readonly serverLive: number;
}

/** Decodes a private copy of the shared page. */
export function decodePage(page: Uint8Array): VchanPage {
  const view = viewOf(page);
  return {
    orders: { left: view.getUint16(VCHAN_LEFT_ORDER, true), right: view.getUint16(VCHAN_RIGHT_ORDER, true) },
    leftCons: view.getUint32(VCHAN_LEFT_CONS, true),
    leftProd: view.getUint32(VCHAN_LEFT_PROD, true),
    rightCons: view.getUint32(VCHAN_RIGHT_CONS, true),
    rightProd: view.getUint32(VCHAN_RIGHT_PROD, true),
    clientLive: view.getUint8(VCHAN_CLI_LIVE),
    serverLive: view.getUint8(VCHAN_SRV_LIVE),
  };
}

/** The grants of both rings, from a private copy of the shared page. The orders must be valid. */
export function decodeGrants(page: Uint8Array, layout: VchanLayout): { left: number[]; right: number[] } {
  const view = viewOf(page);
  const count = layout.left.pageCount + layout.right.pageCount;
  const grants = Array.from({ length: count }, (_, i) => view.getUint32(VCHAN_GRANTS + 4 * i, true));
  return { left: grants.slice(0, layout.left.pageCount), right: grants.slice(layout.left.pageCount) };
}

/** The two end words, from a private copy of the shared page. */
export function endWordsOf(page: Uint8Array, layout: VchanLayout): { server: number; client: number } {
  const view = viewOf(page);
  return {
    server: view.getUint32(layout.endWordsAt, true),
    client: view.getUint32(layout.endWordsAt + 4, true),
  };
}

export interface ServerPage {
  readonly orders: VchanOrders;
  /** Grants of the left ring's pages, then of the right ring's. */
  readonly grants: readonly number[];
  /** Initial value of both counters of each ring; nonzero only in tests. */
  readonly leftCounter: number;
  readonly rightCounter: number;
}

/**
 * Fills in the shared page as a server does before it announces the page. VCHAN_SRV_LIVE is left out and must be set
 * last, because a client that has a previous server's keys may already be looking at this very page.
 */
export function encodeServerPage(page: Uint8Array, server: ServerPage): void {
  const view = viewOf(page);
  page.fill(0);
  view.setUint32(VCHAN_LEFT_CONS, server.leftCounter, true);
  view.setUint32(VCHAN_LEFT_PROD, server.leftCounter, true);
  view.setUint32(VCHAN_RIGHT_CONS, server.rightCounter, true);
  view.setUint32(VCHAN_RIGHT_PROD, server.rightCounter, true);
  view.setUint16(VCHAN_LEFT_ORDER, server.orders.left, true);
  view.setUint16(VCHAN_RIGHT_ORDER, server.orders.right, true);
  view.setUint8(VCHAN_CLI_LIVE, VCHAN_NOT_CONNECTED);
  view.setUint8(VCHAN_CLI_NOTIFY, VCHAN_NOTIFY_WRITE);
  view.setUint32(layoutOf(server.orders).endWordsAt, VCHAN_END_SPOKEN, true);
  server.grants.forEach((ref, i) => view.setUint32(VCHAN_GRANTS + 4 * i, ref, true));
}

/** Whether an end word comes from a peer that can tell where its stream ends. */
export function speaksOfEnd(word: number): boolean {
  return word === VCHAN_END_SPOKEN || isEnd(word);
}

/** Whether an end word says that nothing more will be written. */
export function isEnd(word: number): boolean {
  return word === VCHAN_END_REACHED || word === VCHAN_END_CUT;
}

function viewOf(page: Uint8Array): DataView {
  return new DataView(page.buffer, page.byteOffset, page.byteLength);
}

function pagesOf(order: number): number {
  return order < ORDER_EXTERNAL ? 0 : 2 ** (order - ORDER_EXTERNAL);
}

/** Size of the part of the shared page in front of any rings in it. */
function headerBytes(orders: VchanOrders): number {
  const smallest = Math.min(orders.left, orders.right);
  return smallest < ORDER_EXTERNAL ? 2 ** smallest : PAGE_SIZE;
}

function placeOf(order: number): RingPlace {
  const sizeBytes = 2 ** order;
  const inPage = order < ORDER_EXTERNAL;
  return { sizeBytes, offsetInPage: inPage ? sizeBytes : undefined, pageCount: pagesOf(order) };
}

function externalOrder(sizeBytes: number): number {
  return Math.max(ORDER_EXTERNAL, Math.ceil(Math.log2(Math.max(1, sizeBytes))));
}
