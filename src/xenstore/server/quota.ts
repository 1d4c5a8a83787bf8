// The limits that a domain without privileges is held to, and the failure that requests end with.
import type { XsErrno } from "../../protocol/xs-wire.ts";

export interface Quotas {
  /** Nodes that a domain owns. */
  readonly nodes: number;
  readonly watches: number;
  /** Transactions open at a time. */
  readonly transactions: number;
  /** Nodes that one transaction touches; requests in one, where conflicts are found by replaying. */
  readonly transactionNodes: number;
  /** Bytes that all its transactions hold, with hundreds for each node they looked at, changed or removed. */
  readonly transactionBytes: number;
  /** Entries of a node's permissions. */
  readonly permissions: number;
  readonly nodeBytes: number;
  readonly pathBytes: number;
  /** Replies that a connection has not taken; then no further request of it is read. */
  readonly outstanding: number;
  /** Watch events that a connection has not taken; further ones are lost. */
  readonly watchEvents: number;
  /** Bytes that all its connections have not taken; then none is served. At half of it events are lost. */
  readonly unreadBytes: number;
  /**
   * Bytes that all its connections have sent and that nobody has handled; then none is read. More than half a packet
   * of each of them.
   */
  readonly inputBytes: number;
  /** Socket connections at a time. */
  readonly connections: number;
}

/** Names of the limits in GET_QUOTA and SET_QUOTA (xenstore-control's). */
export const QUOTA_WIRE_NAMES: ReadonlyMap<string, keyof Quotas> = new Map([
  ["nodes", "nodes"],
  ["watches", "watches"],
  ["transactions", "transactions"],
  ["transaction-nodes", "transactionNodes"],
  ["node-permissions", "permissions"],
  ["node-size", "nodeBytes"],
  ["path-max", "pathBytes"],
  ["outstanding", "outstanding"],
]);

/** What a domain with privileges is held to: nothing but what keeps this process alive. */
export const PRIVILEGED_QUOTAS: Quotas = {
  nodes: Infinity,
  watches: Infinity,
  transactions: Infinity,
  transactionNodes: Infinity,
  transactionBytes: Infinity,
  permissions: Infinity,
  nodeBytes: Infinity,
  pathBytes: Infinity,
  outstanding: 1024,
  watchEvents: 65_536,
  unreadBytes: Infinity,
  inputBytes: Infinity,
  connections: Infinity,
};

/** Ends a request with an error reply. Private to the server: the dispatcher catches it. */
export class RequestFailure extends Error {
  readonly errno: XsErrno;

  constructor(errno: XsErrno) {
    super(errno);
    this.errno = errno;
  }
}

/** Ends a request with an error reply. */
export function fail(errno: XsErrno): never {
  throw new RequestFailure(errno);
}
