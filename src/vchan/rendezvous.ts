// How the two ends of a vchan find each other: two keys in xenstore, as in libxenvchan, Qubes and mirage. The server
// writes both in one transaction, readable only by the client. The client may not see anything else, so it reads and
// watches these two keys and nothing above them.
import { XentoolError } from "../core/errors.ts";
import { parseDecimal, type Domid, type EvtchnPort, type GrantRef } from "../core/types.ts";
import { isValidPath } from "../protocol/xs-wire.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { nullIfDenied } from "../xenstore/errors.ts";
import type { XenstoreOperations } from "../xenstore/operations.ts";
import type { WatchCallback } from "../xenstore/watch-events.ts";

/** What a client needs to connect. */
export interface VchanKeys {
  readonly ringRef: GrantRef;
  readonly port: EvtchnPort;
}

export interface VchanPlace {
  /** The xenstore directory of the two keys. */
  readonly path: string;
  readonly server: Domid;
  readonly client: Domid;
}

const RING_REF = "ring-ref";
const EVENT_CHANNEL = "event-channel";
const KEY_MAX = 0xffff_ffff;
const PORT_NAME = /^[A-Za-z0-9_-]{1,128}$/;

/** Fails with `usage` unless `name` is a port of the usual convention, or an absolute xenstore path. */
export function checkVchanName(name: string): void {
  if (name.startsWith("/")) {
    if (name !== "/" && !name.includes("@") && isValidPath(name)) return;
    throw new XentoolError("usage", `${name} is not a xenstore path that a vchan can have`);
  }
  if (PORT_NAME.test(name)) return;
  const rule = "letters, digits, - and _, or an absolute xenstore path";
  throw new XentoolError("usage", `a vchan's name is made of ${rule}; not ${JSON.stringify(name)}`);
}

/** The place that a name stands for. Fails as `checkVchanName` does. */
export function vchanPlace(name: string, server: Domid, client: Domid): VchanPlace {
  checkVchanName(name);
  const path = name.startsWith("/") ? name : `/local/domain/${server}/data/vchan/${client}/${name}`;
  return { path, server, client };
}

/** How a server found its place. */
export interface PublishedKeys {
  /** The directory belongs to the vchan alone: created for its keys, or by an earlier server that left only keys. */
  readonly ownsDirectory: boolean;
  /** The keys of somebody else were there, who may still be waiting for a client. */
  readonly replaced: boolean;
}

/** A server finds that its keys are gone from where clients look, or, with `found`, that another server's are there. */
export class KeysLost extends XentoolError {
  constructor({ path }: VchanPlace, found: boolean) {
    const what = found ? "another server has put its keys at" : "our keys were removed from";
    super("environment", `${what} ${path}`, { path });
  }
}

/**
 * Publishes the server's keys in one transaction, so that the client sees both or neither, and lets it read them.
 * `before` are this server's keys that they replace, so that there never are none. Fails with `KeysLost` if another
 * server has replaced those: the later one wins.
 */
export function publishKeys(
  xenstore: Xenstore,
  place: VchanPlace,
  keys: VchanKeys,
  before?: VchanKeys,
): Promise<PublishedKeys> {
  const values: [string, number][] = [
    [RING_REF, keys.ringRef],
    [EVENT_CHANNEL, keys.port],
  ];
  return xenstore.transaction(async (tx) => {
    const children = (await tx.exists(place.path)) ? await tx.directory(place.path) : undefined;
    const isTaken = children?.some(isKey) ?? false;
    const isOurs = before !== undefined && (await hasKeys(tx, place, before));
    if (before !== undefined && isTaken && !isOurs) throw new KeysLost(place, true);
    for (const [name, value] of values) {
      const path = `${place.path}/${name}`;
      await tx.write(path, String(value));
      await tx.setPerms(path, [
        { domid: place.server, access: "none" },
        { domid: place.client, access: "read" },
      ]);
    }
    return {
      ownsDirectory: children === undefined || (children.length > 0 && children.every(isKey)),
      replaced: isTaken && !isOurs,
    };
  });
}

function isKey(name: string): boolean {
  return name === RING_REF || name === EVENT_CHANNEL;
}

/**
 * Removes the keys, unless another server has since put its own there. Also removes their directory if it belongs to
 * the vchan alone and is empty.
 */
export async function withdrawKeys(
  xenstore: Xenstore,
  place: VchanPlace,
  keys: VchanKeys,
  ownsDirectory: boolean,
): Promise<void> {
  await xenstore.transaction(async (tx) => {
    if (!(await hasKeys(tx, place, keys))) return;
    for (const name of [RING_REF, EVENT_CHANNEL]) await tx.rm(`${place.path}/${name}`);
    if (ownsDirectory && (await tx.directory(place.path)).length === 0) await tx.rm(place.path);
  });
}

/** Whether these very keys are there, as a server has written them. */
async function hasKeys(tx: XenstoreOperations, place: VchanPlace, keys: VchanKeys): Promise<boolean> {
  const ringRef = await tx.tryRead(`${place.path}/${RING_REF}`);
  const port = await tx.tryRead(`${place.path}/${EVENT_CHANNEL}`);
  return ringRef === String(keys.ringRef) && port === String(keys.port);
}

/** Whether the keys that were read are these. */
export function areKeys(found: VchanKeys | undefined, keys: VchanKeys): boolean {
  return found?.ringRef === keys.ringRef && found.port === keys.port;
}

/**
 * Reads both keys in one transaction. Undefined when there is no server, or we may not know of one: for a missing node,
 * a client without rights on the nodes above gets EACCES, not ENOENT.
 */
export async function readKeys(xenstore: Xenstore, place: VchanPlace): Promise<VchanKeys | undefined> {
  const [ringText, portText] = await xenstore.transaction(async (tx) => [
    await tx.tryRead(`${place.path}/${RING_REF}`).catch(nullIfDenied),
    await tx.tryRead(`${place.path}/${EVENT_CHANNEL}`).catch(nullIfDenied),
  ]);
  const ringRef = parseDecimal(ringText, KEY_MAX);
  const port = parseDecimal(portText, KEY_MAX);
  if (ringRef === undefined || ringRef === 0 || port === undefined || port === 0) return undefined;
  return { ringRef: ringRef as GrantRef, port: port as EvtchnPort };
}

/** Runs `callback` at once and whenever the keys may have changed. Call the result to stop watching. */
export function watchKeys(
  xenstore: Xenstore,
  place: VchanPlace,
  callback: WatchCallback,
): Promise<() => unknown> {
  return xenstore.watch(`${place.path}/${EVENT_CHANNEL}`, callback);
}
