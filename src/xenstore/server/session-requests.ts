// The requests about the client's own session: watches, transactions, its path and its features.
import { encodeStrings } from "../../protocol/xs-wire.ts";
import { enforce } from "./quota.ts";
import { domidOf, fail, knownDomain, number, OK, strings, watchablePath, type Request } from "./request.ts";
import { Transaction } from "./transaction.ts";

export function watch(request: Request): Uint8Array {
  const { server, connection, domain } = request;
  const [givenPath, token, depth] = strings(request, 2, server.personality.watchDepth ? 3 : 2) as [
    string,
    string,
    string?,
  ];
  const path = watchablePath(request, givenPath);
  const key = watchKey(path, token);
  if (connection.watches.has(key)) fail("EEXIST");
  enforce(server.personality, domain.quotas, "watches", domain.watchCount + 1);
  const added = {
    connection,
    path,
    givenPath,
    token,
    depth: depth === undefined ? undefined : number(depth),
  };
  connection.watches.set(key, added);
  domain.watchCount++;
  server.watches.add(added);
  request.after(() => connection.sendEvent(givenPath, token));
  return OK;
}

export function unwatch(request: Request): Uint8Array {
  const { server, connection, domain } = request;
  const [givenPath, token] = strings(request, 2) as [string, string];
  const key = watchKey(watchablePath(request, givenPath), token);
  const removed = connection.watches.get(key) ?? fail("ENOENT");
  connection.watches.delete(key);
  domain.watchCount--;
  server.watches.remove(removed);
  return OK;
}

/** Also what the end of a connection does. */
export function dropWatches({
  server,
  connection,
  domain,
}: Pick<Request, "server" | "connection" | "domain">): void {
  for (const each of connection.watches.values()) server.watches.remove(each);
  domain.watchCount -= connection.watches.size;
  connection.watches.clear();
}

export function resetWatches(request: Request): Uint8Array {
  dropWatches(request);
  return OK;
}

export function startTransaction(request: Request): Uint8Array {
  const { server, connection, domain } = request;
  if (request.transaction !== undefined) fail("EBUSY");
  enforce(server.personality, domain.quotas, "transactions", domain.transactionCount + 1);
  const id = connection.takeTransactionId();
  connection.transactions.set(id, new Transaction(id, domain, server.personality, () => server.tree));
  domain.transactionCount++;
  return encodeStrings(String(id));
}

export function endTransaction(request: Request): Uint8Array {
  const { server, connection, domain, transaction } = request;
  const [verdict] = strings(request, 1);
  if (verdict !== "T" && verdict !== "F") fail("EINVAL");
  if (transaction === undefined) fail("ENOENT");
  connection.transactions.delete(transaction.id);
  domain.transactionCount--;
  if (verdict === "F") return OK;
  const result = transaction.commit((requests, workspace) => server.replay(connection, requests, workspace));
  server.tree = result.tree;
  request.after(() => server.fire(result.changes));
  return OK;
}

export function getDomainPath(request: Request): Uint8Array {
  const [text] = strings(request, 1);
  return encodeStrings(`/local/domain/${domidOf(text)}`);
}

/** A domain's own features are for it to read; those of others, and the default, for dom0. */
export function getFeature(request: Request): Uint8Array {
  const { server, domain } = request;
  if (!server.personality.features) fail("ENOSYS");
  const [text] = strings(request, 0, 1);
  if (!domain.privileged && (text === undefined || domidOf(text) !== domain.domid)) fail("EACCES");
  const features = text === undefined ? server.defaultFeatures : knownDomain(request, text).features;
  return encodeStrings(String(features ?? server.personality.serverFeatures));
}

function watchKey(path: string, token: string): string {
  return `${path}\0${token}`;
}
