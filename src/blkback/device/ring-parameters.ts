// What a frontend says about its rings, read from its directory and accepted only within bounds. Besides its state,
// these are the only keys of the guest's that the backend reads.
import { kindOf, XentoolError } from "../../core/errors.ts";
import { parseDecimal, type EvtchnPort } from "../../core/types.ts";
import { escapeText } from "../../core/log.ts";
import { abiOfProtocol, type BlkifAbi } from "../../protocol/blkif.ts";
import { RING_MAX_PAGE_ORDER } from "../../protocol/ring.ts";
import type { Xenstore } from "../../xenstore/client.ts";
import { backendDir, frontendDir, type DeviceAddress } from "../address.ts";
import { MAX_QUEUES } from "../bounds.ts";
import { MAX_QUEUES_KEY, MAX_RING_PAGE_ORDER_KEY, PERSISTENT_KEY, type Offer } from "./features.ts";

/** Where a frontend's ring is. */
export interface RingAddress {
  /** The number of its queue. */
  readonly queue: number;
  /** Grant references of the ring's pages, in order. */
  readonly refs: readonly number[];
  readonly remotePort: EvtchnPort;
}

export interface RingParameters {
  readonly abi: BlkifAbi;
  /** The rings that the frontend may mean, a set for each possible reading, by queue; the likeliest set is first. */
  readonly sets: readonly (readonly RingAddress[])[];
  /** Whether both ends wrote that grants may be kept, so that the guest expects it. */
  readonly keepsGrants: boolean;
}

const MAX_U32 = 0xffff_ffff;

type RingOffer = Pick<Offer, "maxQueues" | "maxRingPageOrder">;

/** What the backend's directory offers at the moment. */
async function readRingOffer(xenstore: Xenstore, address: DeviceAddress): Promise<RingOffer> {
  const read = async (key: string, max: number): Promise<number | undefined> =>
    parseDecimal(await xenstore.tryRead(`${backendDir(address)}/${key}`), max);
  const [maxQueues = 1, maxRingPageOrder = 0] = await Promise.all([
    read(MAX_QUEUES_KEY, MAX_QUEUES),
    read(MAX_RING_PAGE_ORDER_KEY, RING_MAX_PAGE_ORDER),
  ]);
  return { maxQueues, maxRingPageOrder };
}

/**
 * What to offer to a guest whose frontend may have made its rings already: no less than a former server, whose offer
 * it chose from.
 */
export async function offerNoLess(xenstore: Xenstore, address: DeviceAddress, offer: Offer): Promise<Offer> {
  const former = await readRingOffer(xenstore, address);
  return {
    ...offer,
    maxQueues: Math.max(offer.maxQueues, former.maxQueues),
    maxRingPageOrder: Math.max(offer.maxRingPageOrder, former.maxRingPageOrder),
  };
}

type Read = (key: string) => Promise<string | null>;

/**
 * Reads them. The frontend is held to what the backend's directory offers, whichever server wrote that. Throws
 * `protocol`, naming the key that is missing or out of bounds.
 */
export async function readRingParameters(
  xenstore: Xenstore,
  address: DeviceAddress,
): Promise<RingParameters> {
  const read: Read = (key) => xenstore.tryRead(`${frontendDir(address)}/${key}`);
  const [{ maxQueues, maxRingPageOrder }, protocol, order, count, offered, accepted] = await Promise.all([
    readRingOffer(xenstore, address),
    read("protocol"),
    read("ring-page-order"),
    read("multi-queue-num-queues"),
    xenstore.tryRead(`${backendDir(address)}/${PERSISTENT_KEY}`),
    read(PERSISTENT_KEY),
  ]);
  const abi = abiOfProtocol(protocol);
  if (abi === undefined)
    throw refused("protocol", protocol, "x86_64-abi, x86_32-abi or arm-abi was expected");
  const pages = pageCount(order, maxRingPageOrder);
  const queues = queueCount(count, maxQueues);
  const keepsGrants = offered === "1" && accepted === "1";
  if (queues === 1) return { abi, sets: [[await readRing(read, 0, "", pages)]], keepsGrants };
  // A kernel that had several queues leaves its keys to a successor that has one, which only writes the plain keys.
  // Others do it the other way round.
  const single = async (): Promise<RingAddress[]> => [await readRing(read, 0, "", pages)];
  const readings = await Promise.allSettled([readRings(read, queues, pages), single()]);
  const refusals = readings.flatMap((it) => (it.status === "rejected" ? [it.reason as unknown] : []));
  const others = refusals.filter((it) => kindOf(it) !== "protocol");
  if (others.length > 0) throw others[0];
  const sets = readings.flatMap((it) => (it.status === "fulfilled" ? [it.value] : []));
  if (sets.length === 0) throw refusals[0];
  return { abi, sets, keepsGrants };
}

async function readRings(read: Read, queues: number, pages: number): Promise<RingAddress[]> {
  const reading = Array.from({ length: queues }, (_, queue) =>
    readRing(read, queue, `queue-${queue}/`, pages),
  );
  const rings = await Promise.all(reading);
  const queueOf = new Map<number, number>();
  for (const [queue, { refs }] of rings.entries())
    for (const ref of refs) {
      const other = queueOf.get(ref);
      if (other !== undefined)
        throw new XentoolError(
          "protocol",
          `the frontend wrote page ${ref} to queue-${queue}: it is a page of queue-${other}`,
        );
      queueOf.set(ref, queue);
    }
  return rings;
}

/** Reads one ring from the keys that begin with `dir`. */
async function readRing(read: Read, queue: number, dir: string, pages: number): Promise<RingAddress> {
  const portKey = `${dir}event-channel`;
  const singleKey = `${dir}ring-ref`;
  const keys = Array.from({ length: pages }, (_, page) => `${singleKey}${page}`);
  const [port, single, ...texts] = await Promise.all([
    read(portKey),
    pages === 1 ? read(singleKey) : null,
    ...keys.map(read),
  ]);
  const refs =
    single === null
      ? keys.map((key, page) => number(key, texts[page] ?? null, MAX_U32))
      : [number(singleKey, single, MAX_U32)];
  return { queue, refs, remotePort: number(portKey, port, MAX_U32) as EvtchnPort };
}

function pageCount(text: string | null, maxOrder: number): number {
  const order = text === null ? 0 : parseDecimal(text, maxOrder);
  if (order === undefined) throw refused("ring-page-order", text, `at most ${maxOrder} was offered`);
  return 1 << order;
}

function queueCount(text: string | null, maxQueues: number): number {
  if (text === null) return 1;
  const queues = parseDecimal(text, maxQueues);
  if (queues === undefined || queues === 0)
    throw refused(
      "multi-queue-num-queues",
      text,
      maxQueues === 1 ? "1 was offered" : `1 to ${maxQueues} were offered`,
    );
  return queues;
}

function number(key: string, text: string | null, max: number): number {
  const value = parseDecimal(text, max);
  if (value === undefined) throw refused(key, text, "a number was expected");
  return value;
}

function refused(key: string, text: string | null, why: string): XentoolError {
  const value = text === null ? "nothing" : `"${escapeText(text, 60)}"`;
  return new XentoolError("protocol", `the frontend wrote ${value} to ${key}: ${why}`, { key });
}
