// Closes a ring as planned and verifies the result. A request that the server does not acknowledge is taken back
// where possible, so that a failed close leaves the ring as it was.
import { within } from "../core/deadline.ts";
import { XentoolError } from "../core/errors.ts";
import type { Domid } from "../core/types.ts";
import type { Platform } from "../platform/platform.ts";
import {
  loadRingWord,
  storeRingWord,
  XENSTORE_CONNECTED,
  XENSTORE_ERROR_NONE,
  XENSTORE_RECONNECT,
  XS_RING_CONNECTION,
  XS_RING_ERROR,
  XS_RING_POISON,
  XsRingStream,
  type XsRingPage,
} from "../protocol/xs-ring.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { errnoOf } from "../xenstore/errors.ts";
import { KICK_MS, LOOK_MS } from "./bounds.ts";
import { planClose, type CloseMethod, type ClosePlan, type ServerIdentity } from "./close-plan.ts";
import { pauseGuest } from "./guest-pause.ts";
import { inspectRing, type RingReport } from "./report.ts";
import { canReconnect } from "./verdict.ts";

/** The ring to close and the means to do so. */
export interface RingToClose {
  readonly domid: Domid;
  readonly page: XsRingPage;
  /** Sends the server an event; only available in the guest itself. */
  readonly notify: (() => void) | undefined;
  /** The toolstack's means; not available in the guest itself. */
  readonly toolstack: { readonly platform: Platform; readonly xenstore: Xenstore } | undefined;
}

export interface CloseOptions {
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
  /** A node that the guest watches. Rewriting it with its own value makes oxenstored touch the ring. */
  readonly kickPath: string | undefined;
}

export interface CloseResult {
  readonly method: CloseMethod;
  readonly elapsedMs: number;
  /** The ring after the close. */
  readonly report: RingReport;
}

/**
 * Tells servers apart by what they offer on the ring, and by whether they answer `help` as C xenstored does. Fails with
 * `timeout` when nothing is answered.
 */
export async function identifyServer(
  report: RingReport,
  xenstore: Xenstore | undefined,
  timeoutMs: number,
): Promise<ServerIdentity> {
  if (canReconnect(report.words))
    return { kind: "reconnecting", evidence: "server_features has RECONNECTION, as oxenstored's" };
  if (xenstore === undefined) return { kind: "unknown", evidence: "its kind cannot be asked for from here" };
  try {
    // oxenstored says OK to any command; it may be serving a ring whose guest has cleared the features.
    if ((await answered(xenstore.control("help"), timeoutMs)) !== "OK")
      return { kind: "xenstored", evidence: "it answers `help`, as C xenstored does" };
  } catch (error) {
    if (errnoOf(error) === undefined) throw error;
  }
  return { kind: "unknown", evidence: "it does not answer `help` as C xenstored does" };
}

/**
 * Carries out `plan`. Fails with `timeout` when the server does not answer, with `protocol` when the ring is wrong
 * afterwards.
 */
export async function closeRing(
  plan: ClosePlan,
  ring: RingToClose,
  options: CloseOptions,
): Promise<CloseResult> {
  const started = performance.now();
  const before = inspectRing(ring.page);
  await METHODS[plan.method](ring, options);
  const report = inspectRing(ring.page);
  verify(before, report, ring);
  return { method: plan.method, elapsedMs: performance.now() - started, report };
}

const METHODS: Readonly<Record<CloseMethod, (ring: RingToClose, options: CloseOptions) => Promise<void>>> = {
  handshake,
  reintroduce,
  release,
  poison,
};

async function handshake(ring: RingToClose, options: CloseOptions): Promise<void> {
  const { page } = ring;
  await untilAnswered(ring, options, wish(page), () => kick(ring, options.kickPath));
}

async function reintroduce(ring: RingToClose, options: CloseOptions): Promise<void> {
  const { page, domid } = ring;
  const { platform, xenstore } = toolstackOf(ring);
  const { timeoutMs } = options;
  const store = await answered(storeAddress(xenstore, domid), timeoutMs);
  const guest = await pauseGuest(platform, domid);
  try {
    // The guest may have sent something before it was paused.
    const request = { domid, method: "reintroduce", force: false, isSelf: false } as const;
    const report = inspectRing(page);
    planClose(report, await identifyServer(report, xenstore, timeoutMs), request);
    await untilAnswered(
      ring,
      options,
      wish(page),
      once(() => xenstore.introduce(domid, store.frame, store.port)),
    );
  } finally {
    await guest.resume();
  }
}

async function release(ring: RingToClose, { timeoutMs }: CloseOptions): Promise<void> {
  const { page, domid } = ring;
  const { platform, xenstore } = toolstackOf(ring);
  const store = await answered(storeAddress(xenstore, domid), timeoutMs);
  const guest = await pauseGuest(platform, domid);
  try {
    await answered(releaseOnce(xenstore, domid), timeoutMs);
    fillWithPoison(page);
    storeRingWord(page, XS_RING_ERROR, XENSTORE_ERROR_NONE);
    storeRingWord(page, XS_RING_CONNECTION, XENSTORE_CONNECTED);
    await answered(xenstore.introduce(domid, store.frame, store.port), timeoutMs);
  } finally {
    await guest.resume();
  }
}

/** Releases the domain, unless an interrupted close has: it still needs its introduction. */
async function releaseOnce(xenstore: Xenstore, domid: Domid): Promise<void> {
  if (await xenstore.isDomainIntroduced(domid)) await xenstore.release(domid);
}

async function poison(ring: RingToClose): Promise<void> {
  const { toolstack, page, domid } = ring;
  const guest = toolstack === undefined ? undefined : await pauseGuest(toolstack.platform, domid);
  try {
    fillWithPoison(page);
    // A kernel that finds its predecessor's wish waits until it is answered, and here nobody answers.
    storeRingWord(page, XS_RING_CONNECTION, XENSTORE_CONNECTED);
  } finally {
    await guest?.resume();
  }
}

/** Poisons before it resets, as hvmloader does, so that a server that reads in between finds no packet. */
function fillWithPoison(page: XsRingPage): void {
  for (const stream of [XsRingStream.requests(page), XsRingStream.responses(page)]) {
    stream.fill(XS_RING_POISON);
    stream.reset();
  }
}

function toolstackOf({ toolstack }: RingToClose): NonNullable<RingToClose["toolstack"]> {
  if (toolstack === undefined) throw new XentoolError("bug", "this way to close needs the toolstack");
  return toolstack;
}

/** Asks for a new start, whatever the guest has left in the word. False when it has asked for one itself. */
function wish(page: XsRingPage): boolean {
  return Atomics.exchange(page.words, XS_RING_CONNECTION >> 2, XENSTORE_RECONNECT) !== XENSTORE_RECONNECT;
}

/** Unless the server has answered meanwhile. */
function takeBackWish(page: XsRingPage): void {
  Atomics.compareExchange(page.words, XS_RING_CONNECTION >> 2, XENSTORE_RECONNECT, XENSTORE_CONNECTED);
}

/** What xenstored answers. One that is silent must not hold us, or the guest that we have paused, for ever. */
function answered<T>(request: Promise<T>, timeoutMs: number): Promise<T> {
  const late = `xenstored did not answer within ${timeoutMs} ms; what it was asked, it may still carry out`;
  return within(timeoutMs, request, () => new XentoolError("timeout", late, { timeoutMs }));
}

/**
 * Waits for the server to clear RECONNECT. If it does not, a RECONNECT that we set is taken back. `prod` may be waiting
 * for a xenstored that is silent, so it is not waited for.
 */
async function untilAnswered(
  { page, domid }: RingToClose,
  { timeoutMs, signal }: CloseOptions,
  isOurs: boolean,
  prod: () => Promise<void>,
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  let nextKick = 0;
  const prodded: { open: boolean; failures: unknown[] } = { open: false, failures: [] };
  const prodOnce = async (): Promise<void> => {
    prodded.open = true;
    await prod().catch((error: unknown) => prodded.failures.push(error));
    prodded.open = false;
  };
  try {
    while (loadRingWord(page, XS_RING_CONNECTION) !== XENSTORE_CONNECTED) {
      const now = performance.now();
      if (signal.aborted)
        throw new XentoolError("cancelled", `closing the ring of domain ${domid} was cancelled`);
      if (prodded.failures.length > 0) throw prodded.failures[0];
      if (now > deadline) throw noAnswer(domid, timeoutMs, isOurs, prodded.open);
      if (now >= nextKick && !prodded.open) {
        nextKick = now + KICK_MS;
        void prodOnce();
      }
      await Bun.sleep(LOOK_MS);
    }
  } catch (error) {
    if (isOurs) takeBackWish(page);
    throw error;
  }
}

function noAnswer(domid: number, timeoutMs: number, isOurs: boolean, isAsked: boolean): XentoolError {
  const wish = isOurs ? "the wish was taken back, the ring is as it was" : "the guest's own wish stays";
  const after = isAsked ? `${wish}; xenstored is silent, and may still carry out what it was asked` : wish;
  return new XentoolError(
    "timeout",
    `the server did not answer the close of domain ${domid}'s ring within ${timeoutMs} ms; ${after}`,
    { domid, timeoutMs },
  );
}

/**
 * Makes the server look at the ring. In the guest, an event is enough. From outside, oxenstored touches a ring only
 * to write a watch event into it; otherwise it scans all rings every 20 to 35 seconds.
 */
async function kick({ notify, toolstack, domid }: RingToClose, path: string | undefined): Promise<void> {
  notify?.();
  if (toolstack === undefined) return;
  const node = path ?? `/local/domain/${domid}/memory/target`;
  await toolstack.xenstore.transaction(async (tx) => {
    if (await tx.exists(node)) await tx.writeBytes(node, await tx.readBytes(node));
  });
}

function once(work: () => Promise<void>): () => Promise<void> {
  let done = false;
  return async () => {
    if (done) return;
    done = true;
    await work();
  };
}

interface StoreAddress {
  readonly frame: number;
  readonly port: number;
}

async function storeAddress(xenstore: Xenstore, domid: number): Promise<StoreAddress> {
  const directory = `/local/domain/${domid}/store`;
  const [frame, port] = await Promise.all(
    ["ring-ref", "port"].map(async (name) => {
      const text = await xenstore.tryRead(`${directory}/${name}`);
      if (text !== null && /^[0-9]{1,16}$/.test(text)) return Number(text);
      throw new XentoolError("environment", `xenstore ${directory}/${name} does not say where the ring is`);
    }),
  );
  return { frame, port };
}

/** Checks that the closed ring is connected, sane and begins anew. A running guest may have used it since. */
function verify(
  before: RingReport,
  { words, requests, responses, verdict }: RingReport,
  ring: RingToClose,
): void {
  const isFresh = words.reqProd === 0 && words.rspProd === 0;
  const isPoisoned = [requests.poison, responses.poison].some((it) => it === "0xff" || it === "deadbeef");
  const wentBack = words.reqProd < before.words.reqProd || words.rspProd < before.words.rspProd;
  const isAnew = ring.toolstack === undefined ? isFresh : isFresh || isPoisoned || wentBack;
  if (words.connection === XENSTORE_CONNECTED && verdict.code !== "corrupt" && isAnew) return;
  const found = isAnew ? verdict.text : "it did not begin anew";
  throw new XentoolError("protocol", `the close of domain ${ring.domid}'s ring left it wrong: ${found}`, {
    domid: ring.domid,
  });
}
