// What a frontend says about its ring, read from its directory and accepted only within bounds. Besides its state,
// these are the only keys of the guest's that the backend reads.
import { XentoolError } from "../core/errors.ts";
import { parseDecimal, type EvtchnPort } from "../core/types.ts";
import { escapeText } from "../core/log.ts";
import { abiOfProtocol, type BlkifAbi } from "../protocol/blkif.ts";
import type { Xenstore } from "../xenstore/client.ts";

export interface RingParameters {
  readonly abi: BlkifAbi;
  /** Grant references of the ring's pages, in order. */
  readonly refs: readonly number[];
  readonly remotePort: EvtchnPort;
}

const MAX_U32 = 0xffff_ffff;

/** Reads them from `dir`. Throws `protocol`, naming the key that is missing or out of bounds. */
export async function readRingParameters(
  xenstore: Xenstore,
  dir: string,
  maxPageOrder: number,
): Promise<RingParameters> {
  const read = (key: string): Promise<string | null> => xenstore.tryRead(`${dir}/${key}`);
  const queues = await read("multi-queue-num-queues");
  if (queues !== null && queues !== "1")
    throw refused("multi-queue-num-queues", queues, "multi-queue was not offered");
  const protocol = await read("protocol");
  const abi = abiOfProtocol(protocol);
  if (abi === undefined)
    throw refused("protocol", protocol, "x86_64-abi, x86_32-abi or arm-abi was expected");
  const orderText = await read("ring-page-order");
  const order = orderText === null ? 0 : parseDecimal(orderText, maxPageOrder);
  if (order === undefined) throw refused("ring-page-order", orderText, `at most ${maxPageOrder} was offered`);
  const refs: number[] = [];
  const single = order === 0 ? await read("ring-ref") : null;
  if (single !== null) {
    refs.push(number("ring-ref", single, MAX_U32));
  } else {
    for (let page = 0; page < 1 << order; page++)
      refs.push(number(`ring-ref${page}`, await read(`ring-ref${page}`), MAX_U32));
  }
  const remotePort = number("event-channel", await read("event-channel"), MAX_U32) as EvtchnPort;
  return { abi, refs, remotePort };
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
