// A transaction: a fork of the tree, the changes made to it, and the check at its end whether it may be committed. If
// nothing that it read has changed since, its changes are applied to the current tree. Otherwise C xenstored refuses,
// and oxenstored repeats all its requests and insists on the same replies.
import {
  XS_DIRECTORY,
  XS_DIRECTORY_PART,
  XS_GET_PERMS,
  XS_READ,
  type XsPacket,
} from "../../protocol/xs-wire.ts";
import { ENTRY_BYTES } from "../bounds.ts";
import type { Domain } from "./domain.ts";
import { Footprint } from "./footprint.ts";
import { enforce, type Personality } from "./personality.ts";
import { fail } from "./quota.ts";
import type { Snapshot, Snapshots } from "./snapshots.ts";
import type { StoreTree } from "./store.ts";
import type { Change } from "./watch.ts";

/** Requests that change nothing. Where transactions are replayed, one with only these never conflicts. */
const READING: ReadonlySet<number> = new Set([XS_DIRECTORY, XS_DIRECTORY_PART, XS_GET_PERMS, XS_READ]);

/** A request of a transaction and its reply. */
export interface LoggedRequest {
  readonly packet: XsPacket;
  readonly reply: { readonly type: number; readonly payload: Uint8Array };
}

/** The material of node requests: the tree, and records of what they read and changed. */
export interface Workspace {
  readonly tree: StoreTree;
  /** Undefined if nobody needs it later. */
  readonly footprint: Footprint | undefined;
  /** Notes a change for which to fire events later. */
  note(change: Change): void;
}

/** The server as transactions see it when they begin and commit. */
export interface TransactionHost {
  readonly personality: Personality;
  /** The current tree. */
  readonly tree: StoreTree;
  readonly snapshots: Snapshots;
}

/** The result of a successful commit. */
export interface CommitResult {
  readonly tree: StoreTree;
  readonly changes: readonly Change[];
}

export class Transaction implements Workspace, Snapshot {
  readonly id: number;
  readonly domain: Domain;
  #footprint: Footprint;
  readonly #host: TransactionHost;
  readonly #replays: boolean;
  #base: StoreTree | undefined;
  #tree: StoreTree | undefined;
  #changes: Change[] = [];
  /** Each path's position in `changes`. */
  readonly #places = new Map<string, number>();
  #log: LoggedRequest[] = [];
  /** Bytes of the changes and the log. */
  #entryBytes = 0;
  #chargedBytes = 0;
  #expired = false;

  constructor(id: number, domain: Domain, host: TransactionHost) {
    this.id = id;
    this.domain = domain;
    this.#host = host;
    this.#replays = host.personality.conflicts === "replay";
    this.#footprint = this.#newFootprint();
    if (this.#replays) this.#fork();
  }

  /** Its own tree. C xenstored reads a node only when it is first requested, so the fork is made no earlier. */
  get tree(): StoreTree {
    return this.#tree ?? this.#fork();
  }

  get footprint(): Footprint {
    return this.#footprint;
  }

  get changes(): readonly Change[] {
    return this.#changes;
  }

  /** Its requests so far, if they may have to be repeated. */
  get log(): readonly LoggedRequest[] {
    return this.#log;
  }

  get turnover(): number {
    return this.#base?.turnover ?? 0;
  }

  /**
   * Where events are merged, they are merged immediately: a client that changes one node for ever must not fill the
   * memory.
   */
  note(change: Change): void {
    const { path } = change;
    const place = this.#host.personality.mergesTransactionEvents ? this.#places.get(path) : undefined;
    if (place === undefined) {
      this.#places.set(path, this.#changes.push(change) - 1);
      this.#entryBytes += ENTRY_BYTES + path.length;
      return;
    }
    const { removed, oldPermissions } = this.#changes[place];
    this.#changes[place] = { path, removed: change.removed ?? removed, oldPermissions };
  }

  /** Fails if no further request is allowed. */
  admitRequest(): void {
    const { personality } = this.#host;
    const { quotas, transactionBytes } = this.domain;
    if (this.#replays) enforce(personality, quotas, "transactionNodes", this.#log.length + 1);
    enforce(personality, quotas, "transactionBytes", transactionBytes);
  }

  /** Records a request and its reply. */
  logRequest(request: LoggedRequest): void {
    if (this.#replays) {
      this.#log.push(request);
      this.#entryBytes += ENTRY_BYTES + request.packet.payload.length + request.reply.payload.length;
    }
    this.#charge();
  }

  /**
   * The tree and the events that result from the transaction; undefined if its requests must be repeated in `again`.
   * Fails with EAGAIN if another client's change conflicts.
   */
  commit(): CommitResult | undefined {
    const { tree: current } = this.#host;
    if (this.#expired) fail("EAGAIN");
    const unchanged = { tree: current, changes: [] };
    const changesNothing = !this.#footprint.root.dirty;
    const [base, tree] = [this.#base, this.#tree];
    if (base === undefined || tree === undefined) return unchanged;
    const changes = this.#changes.filter(({ path }) => this.#isTold(path, base, tree));
    if (base.version === current.version) return changesNothing ? unchanged : { tree, changes };
    if (this.#replays && this.#log.every(({ packet }) => READING.has(packet.type))) return unchanged;
    if (!base.agreesWith(current, this.#footprint) || (this.#replays && this.#quotaMoved(base, current)))
      return this.#replays ? undefined : fail("EAGAIN");
    return changesNothing ? unchanged : { tree: this.#merge(tree, current), changes };
  }

  /**
   * A transaction that begins now, in which to repeat this one's requests. It is not counted, because it lives only as
   * long as one request.
   */
  again(): Transaction {
    const again = new Transaction(this.id, this.domain, this.#host);
    again.#log = this.#log;
    return again;
  }

  /** Discards everything except the log, which is all that is needed to repeat it. */
  forgetResult(): void {
    this.#host.snapshots.delete(this);
    this.#base = this.#tree = undefined;
    this.#changes = [];
    this.#places.clear();
    this.#footprint = this.#newFootprint();
  }

  /** Releases everything it holds. */
  release(): void {
    this.forgetResult();
    this.#log = [];
    this.#entryBytes = 0;
    this.#charge();
  }

  expire(): void {
    this.release();
    this.#expired = true;
  }

  /** To C xenstored, a node that was made and removed within the transaction never was. */
  #isTold(path: string, base: StoreTree, tree: StoreTree): boolean {
    if (!this.#host.personality.mergesTransactionEvents) return true;
    return base.get(path) !== undefined || tree.get(path) !== undefined;
  }

  #fork(): StoreTree {
    this.#base = this.#host.tree.fork();
    this.#tree = this.#base.fork();
    if (!this.domain.privileged) this.#host.snapshots.add(this);
    return this.#tree;
  }

  #newFootprint(): Footprint {
    const { personality } = this.#host;
    return new Footprint((touched) => {
      if (!this.#replays) enforce(personality, this.domain.quotas, "transactionNodes", touched);
    });
  }

  #charge(): void {
    const grown = this.#tree === undefined ? 0 : this.#tree.turnover - this.turnover;
    const bytes = grown + this.#footprint.bytes + this.#entryBytes;
    this.domain.transactionBytes += bytes - this.#chargedBytes;
    this.#chargedBytes = bytes;
  }

  /** Whether a quota might now refuse a request that it allowed before, or the other way round. */
  #quotaMoved(base: StoreTree, current: StoreTree): boolean {
    const { domid, privileged } = this.domain;
    return !privileged && base.ownedBy(domid) !== current.ownedBy(domid);
  }

  /** The current tree with this transaction's changes. */
  #merge(tree: StoreTree, current: StoreTree): StoreTree {
    const merged = current.fork();
    merged.graft(tree, this.#footprint);
    const { domid, quotas } = this.domain;
    if (merged.ownedBy(domid) > current.ownedBy(domid))
      enforce(this.#host.personality, quotas, "nodes", merged.ownedBy(domid));
    return merged;
  }
}

/** Work on a tree outside any transaction. */
export class PlainWorkspace implements Workspace {
  readonly tree: StoreTree;
  readonly footprint: undefined;
  readonly changes: Change[] = [];

  constructor(tree: StoreTree) {
    this.tree = tree;
  }

  note(change: Change): void {
    this.changes.push(change);
  }
}
