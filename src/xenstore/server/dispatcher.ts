// From a request's type to its handler, and from what the handler says to the one reply that each request
// gets. A request that fails changes nothing.
import {
  encodeStrings,
  XS_CONTROL,
  XS_DIRECTORY,
  XS_DIRECTORY_PART,
  XS_ERROR,
  XS_GET_DOMAIN_PATH,
  XS_GET_FEATURE,
  XS_GET_PERMS,
  XS_GET_QUOTA,
  XS_INTRODUCE,
  XS_IS_DOMAIN_INTRODUCED,
  XS_MKDIR,
  XS_PAYLOAD_MAX,
  XS_READ,
  XS_RELEASE,
  XS_RESET_WATCHES,
  XS_RESUME,
  XS_RM,
  XS_SET_FEATURE,
  XS_SET_PERMS,
  XS_SET_QUOTA,
  XS_SET_TARGET,
  XS_TRANSACTION_END,
  XS_TRANSACTION_START,
  XS_UNWATCH,
  XS_WATCH,
  XS_WRITE,
  type XsPacket,
} from "../../protocol/xs-wire.ts";
import type { Connection } from "./connection.ts";
import * as domains from "./domain-requests.ts";
import * as nodes from "./node-requests.ts";
import { RequestFailure } from "./quota.ts";
import { fail, type Handler, type Request, type ServerState } from "./request.ts";
import * as session from "./session-requests.ts";
import { PlainWorkspace, type LoggedRequest, type Workspace } from "./transaction.ts";

interface Operation {
  readonly handler: Handler;
  /** Works on nodes: what a transaction records. */
  readonly onNodes?: true;
  /** Only dom0 may. */
  readonly privileged?: true;
  /** The transaction id of the request means nothing. */
  readonly outsideTransactions?: true;
}

const OPERATIONS: ReadonlyMap<number, Operation> = new Map<number, Operation>([
  [XS_DIRECTORY, { handler: nodes.directory, onNodes: true }],
  [XS_DIRECTORY_PART, { handler: nodes.directoryPart, onNodes: true }],
  [XS_READ, { handler: nodes.read, onNodes: true }],
  [XS_GET_PERMS, { handler: nodes.getPermissions, onNodes: true }],
  [XS_WRITE, { handler: nodes.write, onNodes: true }],
  [XS_MKDIR, { handler: nodes.mkdir, onNodes: true }],
  [XS_RM, { handler: nodes.remove, onNodes: true }],
  [XS_SET_PERMS, { handler: nodes.setPermissions, onNodes: true }],
  [XS_WATCH, { handler: session.watch, outsideTransactions: true }],
  [XS_UNWATCH, { handler: session.unwatch, outsideTransactions: true }],
  [XS_RESET_WATCHES, { handler: session.resetWatches }],
  [XS_TRANSACTION_START, { handler: session.startTransaction }],
  [XS_TRANSACTION_END, { handler: session.endTransaction }],
  [XS_GET_DOMAIN_PATH, { handler: session.getDomainPath }],
  [XS_GET_FEATURE, { handler: session.getFeature }],
  [XS_CONTROL, { handler: domains.control, privileged: true }],
  [XS_INTRODUCE, { handler: domains.introduce, privileged: true }],
  [XS_RELEASE, { handler: domains.release, privileged: true }],
  [XS_IS_DOMAIN_INTRODUCED, { handler: domains.isDomainIntroduced, privileged: true }],
  [XS_RESUME, { handler: domains.resume, privileged: true }],
  [XS_SET_TARGET, { handler: domains.setTarget, privileged: true }],
  [XS_SET_FEATURE, { handler: domains.setFeature, privileged: true }],
  [XS_GET_QUOTA, { handler: domains.getQuota, privileged: true }],
  [XS_SET_QUOTA, { handler: domains.setQuota, privileged: true }],
]);

interface Reply {
  readonly type: number;
  readonly payload: Uint8Array;
}

/** Answers one request, then lets its events go. */
export function handleRequest(server: ServerState, connection: Connection, packet: XsPacket): void {
  const later: (() => void)[] = [];
  const outside = new PlainWorkspace(server.tree);
  const reply = replyTo(() => run(server, connection, packet, outside, (action) => later.push(action)));
  connection.sendReply(reply.type, packet, reply.payload);
  server.fire(outside.changes);
  for (const action of later) action();
}

/** Does the node requests of a transaction again; false when one gets another reply than it had. */
export function replayRequests(
  server: ServerState,
  connection: Connection,
  requests: readonly LoggedRequest[],
  work: Workspace,
): boolean {
  return requests.every(({ packet, reply: before }) => {
    const operation = OPERATIONS.get(packet.type);
    const { domain } = connection;
    const request = { server, connection, domain, packet, transaction: undefined, work, after: () => {} };
    const reply = replyTo(() => checkedLength(server, packet, operation?.handler(request) ?? fail("ENOSYS")));
    return reply.type === before.type && Buffer.compare(reply.payload, before.payload) === 0;
  });
}

function run(
  server: ServerState,
  connection: Connection,
  packet: XsPacket,
  outside: Workspace,
  after: Request["after"],
): Reply {
  const operation = OPERATIONS.get(packet.type) ?? fail("ENOSYS");
  const { domain } = connection;
  const id = operation.outsideTransactions === true ? 0 : packet.txId;
  const transaction = id === 0 ? undefined : (connection.transactions.get(id) ?? fail("ENOENT"));
  if (operation.privileged === true && !domain.privileged) fail("EACCES");
  const recorded = operation.onNodes === true ? transaction : undefined;
  recorded?.admitRequest();
  const request = { server, connection, domain, packet, transaction, work: recorded ?? outside, after };
  const reply = replyTo(() => checkedLength(server, packet, operation.handler(request)));
  recorded?.logRequest({ packet, reply });
  return reply;
}

/** What `handler` gives, or the error reply for the failure that it throws. */
function replyTo(handler: () => Reply): Reply {
  try {
    return handler();
  } catch (error) {
    if (error instanceof RequestFailure) return { type: XS_ERROR, payload: encodeStrings(error.errno) };
    throw error;
  }
}

function checkedLength(server: ServerState, packet: XsPacket, payload: Uint8Array): Reply {
  const tooLong = payload.length > XS_PAYLOAD_MAX && server.personality.oversizeReply === "E2BIG";
  return tooLong ? fail("E2BIG") : { type: packet.type, payload };
}
