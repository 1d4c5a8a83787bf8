// The limits for unprivileged domains, and the failure that ends a request.
import type { XsErrno } from "../../protocol/xs-wire.ts";

export interface Quotas {
  /** Nodes that a domain owns. */
  readonly nodes: number;
  readonly watches: number;
  /** Transactions open at the same time. */
  readonly transactions: number;
  /** Nodes that one transaction touches; where conflicts are found by replaying, its number of requests. */
  readonly transactionNodes: number;
  /** Bytes held by all its transactions, including hundreds for each node they read, changed or removed. */
  readonly transactionBytes: number;
  /** Entries in a node's permissions. */
  readonly permissions: number;
  readonly nodeBytes: number;
  readonly pathBytes: number;
  /** Unread replies on a connection; beyond this no further request is read from it. */
  readonly outstanding: number;
  /** Unread watch events on a connection; further ones are lost. */
  readonly watchEvents: number;
  /** Unread bytes on all its connections; beyond this none is served. From half of it on, events are lost. */
  readonly unreadBytes: number;
  /**
   * Unhandled bytes received from all its connections; beyond this none is read. Large enough for an incomplete packet
   * from each of them.
   */
  readonly inputBytes: number;
  /** Simultaneous socket connections. */
  readonly connections: number;
}

/** Names of the limits in GET_QUOTA and SET_QUOTA, as in xenstore-control. */
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

/** The limits for a privileged domain: only those that keep this process alive. */
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

/** Ends a request with an error reply. Internal to the server: the dispatcher catches it. */
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
