// Maps a request's type to its handler, and the handler's result to the one reply that each request gets. A request
// that fails changes nothing.
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
import * as domains from "./domain-requests.ts";
import * as nodes from "./node-requests.ts";
import { fail, RequestFailure } from "./quota.ts";
import type { Handler, NodeHandler, Request, ServerState } from "./request.ts";
import type { Session } from "./session.ts";
import * as sessions from "./session-requests.ts";
import { PlainWorkspace, type LoggedRequest, type Workspace } from "./transaction.ts";
import type { Change } from "./watch.ts";

/** Operations on nodes, which a transaction records. */
const NODE_OPERATIONS: ReadonlyMap<number, NodeHandler> = new Map<number, NodeHandler>([
  [XS_DIRECTORY, nodes.directory],
  [XS_DIRECTORY_PART, nodes.directoryPart],
  [XS_READ, nodes.read],
  [XS_GET_PERMS, nodes.getPermissions],
  [XS_WRITE, nodes.write],
  [XS_MKDIR, nodes.mkdir],
  [XS_RM, nodes.remove],
  [XS_SET_PERMS, nodes.setPermissions],
]);

interface Operation {
  readonly handler: Handler;
  /** Reserved for dom0. */
  readonly privileged?: true;
  /** The request's transaction id is ignored. */
  readonly outsideTransactions?: true;
}

const OPERATIONS: ReadonlyMap<number, Operation> = new Map<number, Operation>([
  ...[...NODE_OPERATIONS].map(([type, handler]): [number, Operation] => [type, { handler }]),
  [XS_WATCH, { handler: sessions.watch, outsideTransactions: true }],
  [XS_UNWATCH, { handler: sessions.unwatch, outsideTransactions: true }],
  [XS_RESET_WATCHES, { handler: sessions.resetWatches }],
  [XS_TRANSACTION_START, { handler: sessions.startTransaction }],
  [XS_TRANSACTION_END, { handler: sessions.endTransaction }],
  [XS_GET_DOMAIN_PATH, { handler: sessions.getDomainPath }],
  [XS_GET_FEATURE, { handler: sessions.getFeature }],
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

/** Answers one request and sends its events. Most requests take a single step. */
export function* handleRequest(
  server: ServerState,
  session: Session,
  packet: XsPacket,
): Generator<void, void> {
  const outside = new PlainWorkspace(server.tree);
  let changes: readonly Change[] = outside.changes;
  const later: (() => void)[] = [];
  const reply = yield* answer({
    server,
    session,
    domain: session.domain,
    packet,
    inTransaction: false,
    work: outside,
    report: (reported) => {
      changes = reported;
    },
    after: (action) => later.push(action),
  });
  const eventsFirst = server.personality.eventsFirst === "all" || packet.type === XS_TRANSACTION_END;
  if (!eventsFirst) session.sendReply(reply.type, packet, reply.payload);
  server.snapshots.trim(server.tree.turnover);
  for (const [index, change] of changes.entries()) {
    if (index > 0) yield;
    server.watches.fire(change, server.tree);
  }
  if (eventsFirst) session.sendReply(reply.type, packet, reply.payload);
  for (const action of later) action();
}

/** Repeats a request of a transaction in `work`. Returns false if its reply differs from the earlier one. */
export function repeatRequest(
  server: ServerState,
  session: Session,
  { packet, reply: before }: LoggedRequest,
  work: Workspace,
): boolean {
  const handler = NODE_OPERATIONS.get(packet.type);
  if (handler === undefined) return false;
  const { domain } = session;
  const nothing = (): void => {};
  const reply = replyOfNodes(handler, {
    server,
    session,
    domain,
    packet,
    inTransaction: true,
    work,
    report: nothing,
    after: nothing,
  });
  return reply.type === before.type && Buffer.compare(reply.payload, before.payload) === 0;
}

function* answer(request: Request): Generator<void, Reply> {
  const { session, domain, packet } = request;
  try {
    const operation = OPERATIONS.get(packet.type) ?? fail("ENOSYS");
    const id = operation.outsideTransactions === true ? 0 : packet.txId;
    const transaction = id === 0 ? undefined : session.transaction(id);
    if (operation.privileged === true && !domain.privileged) fail("EACCES");
    const inTransaction = transaction !== undefined;
    const onNodes = NODE_OPERATIONS.get(packet.type);
    if (onNodes === undefined || transaction === undefined) {
      const outcome = operation.handler({ ...request, inTransaction });
      return checked(request, outcome instanceof Uint8Array ? outcome : yield* outcome);
    }
    transaction.admitRequest();
    const reply = replyOfNodes(onNodes, { ...request, inTransaction, work: transaction });
    transaction.logRequest({ packet, reply });
    return reply;
  } catch (error) {
    return errorReply(error);
  }
}

function replyOfNodes(handler: NodeHandler, request: Request): Reply {
  try {
    return checked(request, handler(request));
  } catch (error) {
    return errorReply(error);
  }
}

/** The error reply for the failure thrown by a handler. */
function errorReply(error: unknown): Reply {
  if (error instanceof RequestFailure) return { type: XS_ERROR, payload: encodeStrings(error.errno) };
  throw error;
}

function checked({ server, packet }: Request, payload: Uint8Array): Reply {
  const tooLong = payload.length > XS_PAYLOAD_MAX && server.personality.oversizeReply === "E2BIG";
  return tooLong ? fail("E2BIG") : { type: packet.type, payload };
}
