// Requests about the client's own session: watches, transactions, its path and its features.
import { encodeStrings } from "../../protocol/xs-wire.ts";
import { fail } from "./quota.ts";
import {
  domidOf,
  knownDomain,
  number,
  OK,
  strings,
  watchablePath,
  type Outcome,
  type Request,
} from "./request.ts";
import type { CommitResult, Transaction } from "./transaction.ts";
import { REPLAYS_MAX } from "../bounds.ts";

export function watch(request: Request): Uint8Array {
  const { server, session } = request;
  const [givenPath, token, depthText] = strings(request, 2, server.personality.watchDepth ? 3 : 2) as [
    string,
    string,
    string?,
  ];
  const path = watchablePath(request, givenPath);
  const depth = depthText === undefined ? undefined : number(depthText);
  session.addWatch({ path, givenPath, token, depth });
  request.after(() => session.sendEvent(givenPath, token));
  return OK;
}

export function unwatch(request: Request): Uint8Array {
  const [givenPath, token] = strings(request, 2) as [string, string];
  request.session.removeWatch(watchablePath(request, givenPath), token);
  return OK;
}

/** Transactions, too: a kernel asks for this when it starts, and does not know its predecessor's. */
export function resetWatches({ session }: Request): Uint8Array {
  session.dropWatches();
  session.dropTransactions();
  return OK;
}

export function startTransaction(request: Request): Uint8Array {
  if (request.inTransaction) fail("EBUSY");
  return encodeStrings(String(request.session.startTransaction().id));
}

export function endTransaction(request: Request): Outcome {
  const [verdict] = strings(request, 1);
  if (verdict !== "T" && verdict !== "F") fail("EINVAL");
  if (!request.inTransaction) fail("ENOENT");
  const transaction = request.session.takeTransaction(request.packet.txId);
  if (verdict === "T") return commit(request, transaction);
  transaction.release();
  return OK;
}

/** What the transaction holds remains charged until its events are sent. */
function* commit(request: Request, transaction: Transaction): Generator<void, Uint8Array> {
  const { server } = request;
  try {
    const result = transaction.commit() ?? (yield* replay(request, transaction));
    server.tree = result.tree;
    request.report(result.changes);
  } catch (error) {
    transaction.release();
    throw error;
  }
  request.after(() => transaction.release());
  return OK;
}

/**
 * Repeats all requests of the transaction, one per step. If others change the tree in between, the result is merged or
 * the replay repeated. Fails with EAGAIN if a reply differs now, or if that happens too often.
 */
function* replay(request: Request, transaction: Transaction): Generator<void, CommitResult> {
  const { server, session } = request;
  transaction.forgetResult();
  for (let attempt = 0; attempt < REPLAYS_MAX; attempt++) {
    const again = transaction.again();
    try {
      for (const each of transaction.log) {
        if (session.closed || !server.repeat(session, each, again)) fail("EAGAIN");
        if (each !== transaction.log.at(-1)) yield;
      }
      const result = again.commit();
      if (result !== undefined) return result;
    } finally {
      again.forgetResult();
    }
  }
  return fail("EAGAIN");
}

export function getDomainPath(request: Request): Uint8Array {
  const [text] = strings(request, 1);
  return encodeStrings(`/local/domain/${domidOf(text)}`);
}

/** A domain may read its own features; only dom0 may read the default and those of others. */
export function getFeature(request: Request): Uint8Array {
  const { server, domain } = request;
  if (!server.personality.features) fail("ENOSYS");
  const [text] = strings(request, 0, 1);
  if (!domain.privileged && (text === undefined || domidOf(text) !== domain.domid)) fail("EACCES");
  const features = text === undefined ? server.defaultFeatures : knownDomain(request, text).features;
  return encodeStrings(String(features ?? server.personality.serverFeatures));
}
