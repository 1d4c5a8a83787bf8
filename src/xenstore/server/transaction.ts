// A transaction: a fork of the tree, what was done to it, and how its end finds out whether it may still
// happen. When nothing that it looked at has changed since, its changes are made in the present tree. Otherwise
// C xenstored refuses, and oxenstored does all its requests again and insists on the same replies.
import {
  XS_DIRECTORY,
  XS_DIRECTORY_PART,
  XS_GET_PERMS,
  XS_READ,
  type XsPacket,
} from "../../protocol/xs-wire.ts";
import type { Domain } from "./domain.ts";
import { Footprint } from "./footprint.ts";
import { enforce, type Personality } from "./personality.ts";
import { fail } from "./quota.ts";
import type { Snapshot, Snapshots } from "./snapshots.ts";
import type { StoreTree } from "./store.ts";
import type { Change } from "./watch.ts";

/** Requests that change nothing: a transaction of these alone is never in anyone's way where it is replayed. */
const READING: ReadonlySet<number> = new Set([XS_DIRECTORY, XS_DIRECTORY_PART, XS_GET_PERMS, XS_READ]);
/** About what a logged request and a noted change take beside their bytes. */
const ENTRY_BYTES = 256;

/** A request of a transaction and the reply it got. */
export interface LoggedRequest {
  readonly packet: XsPacket;
  readonly reply: { readonly type: number; readonly payload: Uint8Array };
}

/** What node requests work on: the tree, and places for what they saw of it and did to it. */
export interface Workspace {
  readonly tree: StoreTree;
  /** Undefined where nobody asks later. */
  readonly footprint: Footprint | undefined;
  /** Notes an event to be fired. */
  note(change: Change): void;
}

/** Where transactions begin and end. */
export interface TransactionHost {
  readonly personality: Personality;
  /** The present tree. */
  readonly tree: StoreTree;
  readonly snapshots: Snapshots;
}

/** What a transaction leads to. */
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
  /** Where in `changes` each path is. */
  readonly #places = new Map<string, number>();
  #log: LoggedRequest[] = [];
  /** Of the changes and the log. */
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

  /** Its own tree. C xenstored reads a node when it is first asked for, so the fork comes no earlier. */
  get tree(): StoreTree {
    return this.#tree ?? this.#fork();
  }

  get footprint(): Footprint {
    return this.#footprint;
  }

  get changes(): readonly Change[] {
    return this.#changes;
  }

  /** Its requests so far, where they may have to be done again. */
  get log(): readonly LoggedRequest[] {
    return this.#log;
  }

  get turnover(): number {
    return this.#base?.turnover ?? 0;
  }

  /** Merged at once where events are: who changes one node for ever must not fill the memory. */
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

  /** Fails when there may be no further request. */
  admitRequest(): void {
    const { personality } = this.#host;
    const { quotas, transactionBytes } = this.domain;
    if (this.#replays) enforce(personality, quotas, "transactionNodes", this.#log.length + 1);
    enforce(personality, quotas, "transactionBytes", transactionBytes);
  }

  /** A request was done, and got this reply. */
  logRequest(request: LoggedRequest): void {
    if (this.#replays) {
      this.#log.push(request);
      this.#entryBytes += ENTRY_BYTES + request.packet.payload.length + request.reply.payload.length;
    }
    this.#charge();
  }

  /**
   * The tree and the events that the transaction leads to; undefined when its requests have to be done again,
   * in `again`. Fails with EAGAIN when another client came in between.
   */
  commit(): CommitResult | undefined {
    const { tree: current } = this.#host;
    if (this.#expired) fail("EAGAIN");
    const unchanged = { tree: current, changes: [] };
    const changesNothing = !this.#footprint.root.dirty;
    const [base, tree] = [this.#base, this.#tree];
    if (base === undefined || tree === undefined) return unchanged;
    if (base.version === current.version)
      return changesNothing ? unchanged : { tree, changes: this.#changes };
    if (this.#replays && this.#log.every(({ packet }) => READING.has(packet.type))) return unchanged;
    if (!base.agreesWith(current, this.#footprint) || (this.#replays && this.#quotaMoved(base, current)))
      return this.#replays ? undefined : fail("EAGAIN");
    return changesNothing ? unchanged : { tree: this.#merge(tree, current), changes: this.#changes };
  }

  /** One that begins now, to do the requests of this one in. It is not counted: it lives as long as one request. */
  again(): Transaction {
    const again = new Transaction(this.id, this.domain, this.#host);
    again.#log = this.#log;
    return again;
  }

  /** Forgets all but the log: nothing else of it is needed to do it again. */
  forgetResult(): void {
    this.#host.snapshots.delete(this);
    this.#base = this.#tree = undefined;
    this.#changes = [];
    this.#places.clear();
    this.#footprint = this.#newFootprint();
  }

  /** It holds nothing any more. */
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

  /** Whether a request might be refused for its quota now that was not before, or the other way round. */
  #quotaMoved(base: StoreTree, current: StoreTree): boolean {
    const { domid, privileged } = this.domain;
    return !privileged && base.ownedBy(domid) !== current.ownedBy(domid);
  }

  /** The present tree with the nodes that this transaction changed. */
  #merge(tree: StoreTree, current: StoreTree): StoreTree {
    const merged = current.fork();
    merged.graft(tree, this.#footprint);
    const { domid, quotas } = this.domain;
    if (merged.ownedBy(domid) > current.ownedBy(domid))
      enforce(this.#host.personality, quotas, "nodes", merged.ownedBy(domid));
    return merged;
  }
}

/** Work on a tree outside of any transaction. */
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
