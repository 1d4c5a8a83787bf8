// A client's state at the server, from the start of its connection or its last reset until its end: watches and
// transactions. A closed session holds neither and sends nothing more.
import type { XsPacket } from "../../protocol/xs-wire.ts";
import type { Domain } from "./domain.ts";
import { enforce } from "./personality.ts";
import { fail } from "./quota.ts";
import { Transaction, type TransactionHost } from "./transaction.ts";
import type { Watch, Watcher, WatchRegistry } from "./watch.ts";

/** The server as sessions need it. */
export interface SessionHost extends TransactionHost {
  readonly watches: WatchRegistry;
}

/** The way from the server to the client. */
export interface SessionOutput {
  sendReply(type: number, request: XsPacket, payload: Uint8Array): void;
  sendEvent(path: string, token: string): void;
}

export class Session implements Watcher {
  readonly domain: Domain;
  readonly #host: SessionHost;
  readonly #output: SessionOutput;
  readonly #watches = new Map<string, Watch>();
  readonly #transactions = new Map<number, Transaction>();
  #lastTransaction = 0;
  #closed = false;

  constructor(domain: Domain, host: SessionHost, output: SessionOutput) {
    this.domain = domain;
    this.#host = host;
    this.#output = output;
  }

  get closed(): boolean {
    return this.#closed;
  }

  sendReply(type: number, request: XsPacket, payload: Uint8Array): void {
    if (!this.#closed) this.#output.sendReply(type, request, payload);
  }

  sendEvent(path: string, token: string): void {
    if (!this.#closed) this.#output.sendEvent(path, token);
  }

  /** Fails with EEXIST if the path is already watched with this token. */
  addWatch(watch: Omit<Watch, "watcher">): void {
    const { domain } = this;
    const key = watchKey(watch.path, watch.token);
    if (this.#watches.has(key)) fail("EEXIST");
    enforce(this.#host.personality, domain.quotas, "watches", domain.watchCount + 1);
    const added = { ...watch, watcher: this };
    this.#watches.set(key, added);
    domain.watchCount++;
    this.#host.watches.add(added);
  }

  /** Fails with ENOENT if the path is not watched with this token. */
  removeWatch(path: string, token: string): void {
    const key = watchKey(path, token);
    const removed = this.#watches.get(key) ?? fail("ENOENT");
    this.#watches.delete(key);
    this.domain.watchCount--;
    this.#host.watches.remove(removed);
  }

  dropTransactions(): void {
    for (const id of this.#transactions.keys()) this.takeTransaction(id).release();
  }

  dropWatches(): void {
    for (const each of this.#watches.values()) this.#host.watches.remove(each);
    this.domain.watchCount -= this.#watches.size;
    this.#watches.clear();
  }

  /** Fails with ENOENT if there is no transaction with this id. */
  transaction(id: number): Transaction {
    return this.#transactions.get(id) ?? fail("ENOENT");
  }

  startTransaction(): Transaction {
    const { domain } = this;
    enforce(this.#host.personality, domain.quotas, "transactions", domain.transactionCount + 1);
    const transaction = new Transaction(this.#takeId(), domain, this.#host);
    this.#transactions.set(transaction.id, transaction);
    domain.transactionCount++;
    return transaction;
  }

  /** Takes the transaction away from the client because it is ending, one way or the other. */
  takeTransaction(id: number): Transaction {
    const taken = this.transaction(id);
    this.#transactions.delete(id);
    this.domain.transactionCount--;
    return taken;
  }

  close(): void {
    this.#closed = true;
    this.dropWatches();
    this.dropTransactions();
  }

  /** An id for a new transaction: neither 0 nor in use. */
  #takeId(): number {
    do this.#lastTransaction = (this.#lastTransaction % 0x7fff_ffff) + 1;
    while (this.#transactions.has(this.#lastTransaction));
    return this.#lastTransaction;
  }
}

function watchKey(path: string, token: string): string {
  return `${path}\0${token}`;
}
