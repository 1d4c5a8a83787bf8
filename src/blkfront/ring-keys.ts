// What a frontend writes of its rings (public/io/blkif.h): the keys, how to know them, and whose they are.
import type { BlkifAbi } from "../protocol/blkif.ts";
import type { Xenstore } from "../xenstore/client.ts";
import type { RingAddress } from "./device.ts";

/** Those that can be named; the pages of a ring, and queues, are numbered. */
const RING_KEYS = new Set([
  "ring-ref",
  "ring-page-order",
  "num-ring-pages",
  "event-channel",
  "protocol",
  "multi-queue-num-queues",
  "feature-persistent",
]);

/** Whether a frontend may have written the key `name`, at the top of its directory, of its rings. */
export function isRingKey(name: string): boolean {
  return RING_KEYS.has(name) || /^(ring-ref|queue-)[0-9]+$/.test(name);
}

/** The keys for `rings`, by queue, as Linux writes them. A backend of old that `countsPages` has one ring only. */
export function ringKeys(
  rings: readonly RingAddress[],
  abi: BlkifAbi,
  countsPages: boolean,
): Record<string, string | number> {
  const pages = rings[0].refs.length;
  // Our pages are granted as long as the rings, so a backend may keep them mapped.
  const keys: Record<string, string | number> = { protocol: abi.protocol, "feature-persistent": 1 };
  if (pages > 1 && countsPages) keys["num-ring-pages"] = pages;
  if (pages > 1 && !countsPages) keys["ring-page-order"] = Math.log2(pages);
  if (rings.length > 1) keys["multi-queue-num-queues"] = rings.length;
  for (const [queue, { refs, port }] of rings.entries()) {
    const dir = rings.length > 1 ? `queue-${queue}/` : "";
    // A single page has the name that every backend knows.
    for (const [page, ref] of refs.entries()) keys[`${dir}ring-ref${pages > 1 ? page : ""}`] = ref;
    keys[`${dir}event-channel`] = port;
  }
  return keys;
}

/** Where a frontend's first port is: among the plain keys, or among those of the first of several queues. */
export interface Ports {
  readonly single: string | null;
  readonly first: string | null;
}

export async function readPorts(store: Pick<Xenstore, "tryRead">, front: string): Promise<Ports> {
  return {
    single: await store.tryRead(`${front}/event-channel`),
    first: await store.tryRead(`${front}/queue-0/event-channel`),
  };
}

export function samePorts(one: Ports, other: Ports | undefined): boolean {
  return one.single === other?.single && one.first === other.first;
}
