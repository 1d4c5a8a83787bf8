// A transaction: a fork of the tree, what was done to it, and how its end finds out whether it may still
// happen. C xenstored compares the generation of every node the transaction touched; oxenstored does all
// its requests again on the present tree and insists on the same replies.
import {
  XS_DIRECTORY,
  XS_DIRECTORY_PART,
  XS_GET_PERMS,
  XS_READ,
  type XsPacket,
} from "../../protocol/xs-wire.ts";
import { enforce, RequestFailure } from "./quota.ts";
import type { Domain } from "./domain.ts";
import type { Personality } from "./personality.ts";
import type { StoreTree } from "./store.ts";
import type { Change } from "./watch.ts";

/** Requests that change nothing: a transaction of these alone is never in anyone's way where it is replayed. */
const READING: ReadonlySet<number> = new Set([XS_DIRECTORY, XS_DIRECTORY_PART, XS_GET_PERMS, XS_READ]);

/** A request of a transaction and the reply it got. */
export interface LoggedRequest {
  readonly packet: XsPacket;
  readonly reply: { readonly type: number; readonly payload: Uint8Array };
}

/** What node requests work on: the tree, and a place for what they did to it. */
export interface Workspace {
  readonly tree: StoreTree;
  /** Events to be fired, in order. */
  readonly changes: readonly Change[];
  /** Adds one. */
  note(change: Change): void;
  /** Notes that a request depends on the node at `path`, also on its absence. Fails when it is one too many. */
  touch(path: string): void;
  /** Notes that the node at `path` was made, changed or removed. Parents before children. */
  modify(path: string): void;
}

export class Transaction implements Workspace {
  readonly id: number;
  readonly changes: Change[] = [];
  readonly log: LoggedRequest[] = [];
  readonly #domain: Domain;
  readonly #personality: Personality;
  readonly #current: () => StoreTree;
  #base: StoreTree | undefined;
  #tree: StoreTree | undefined;
  /** Where in `changes` each path is. */
  readonly #places = new Map<string, number>();
  readonly #touched = new Set<string>();
  readonly #modified = new Set<string>();

  /** `current` gives the present tree of the server. */
  constructor(id: number, domain: Domain, personality: Personality, current: () => StoreTree) {
    this.id = id;
    this.#domain = domain;
    this.#personality = personality;
    this.#current = current;
    if (personality.conflicts === "replay") this.#fork();
  }

  /** Its own tree. C xenstored reads a node when it is first asked for, so the fork comes no earlier. */
  get tree(): StoreTree {
    return this.#tree ?? this.#fork();
  }

  touch(path: string): void {
    if (this.#personality.conflicts !== "generations" || this.#touched.has(path)) return;
    enforce(this.#personality, this.#domain.quotas, "transactionNodes", this.#touched.size + 1);
    this.#touched.add(path);
  }

  modify(path: string): void {
    this.#modified.add(path);
  }

  /** Merged at once where events are: who changes one node for ever must not fill the memory. */
  note(change: Change): void {
    const { path } = change;
    const place = this.#personality.mergesTransactionEvents ? this.#places.get(path) : undefined;
    if (place === undefined) {
      this.#places.set(path, this.changes.push(change) - 1);
      return;
    }
    const { removed, oldPermissions } = this.changes[place] as Change;
    this.changes[place] = { path, removed: change.removed ?? removed, oldPermissions };
  }

  /** Makes room for one request more in the log. */
  admitRequest(): void {
    if (this.#personality.conflicts === "replay")
      enforce(this.#personality, this.#domain.quotas, "transactionNodes", this.log.length + 1);
  }

  logRequest(request: LoggedRequest): void {
    if (this.#personality.conflicts === "replay") this.log.push(request);
  }

  /**
   * The tree and the events that the transaction leads to. `replay` does its requests again in a workspace
   * and says whether the replies are the same. Fails with EAGAIN when another client came in between.
   */
  commit(replay: (requests: readonly LoggedRequest[], workspace: Workspace) => boolean): CommitResult {
    const current = this.#current();
    const unchanged = this.#modified.size === 0;
    if (this.#tree === undefined || this.#base?.version === current.version)
      return unchanged ? { tree: current, changes: [] } : { tree: this.tree, changes: this.changes };
    if (this.#personality.conflicts === "generations") {
      if (!this.#stillHolds(current)) throw new RequestFailure("EAGAIN");
      return unchanged
        ? { tree: current, changes: [] }
        : { tree: this.#merge(current), changes: this.changes };
    }
    if (this.log.every(({ packet }) => READING.has(packet.type))) return { tree: current, changes: [] };
    const workspace = new PlainWorkspace(current.fork());
    if (!replay(this.log, workspace)) throw new RequestFailure("EAGAIN");
    return workspace;
  }

  #fork(): StoreTree {
    this.#base = this.#current().fork();
    this.#tree = this.#base.fork();
    return this.#tree;
  }

  #stillHolds(current: StoreTree): boolean {
    for (const path of this.#touched)
      if (this.#base?.get(path)?.generation !== current.get(path)?.generation) return false;
    return true;
  }

  /** The present tree with the nodes that this transaction changed. */
  #merge(current: StoreTree): StoreTree {
    const merged = current.fork();
    for (const path of this.#modified) {
      const node = this.tree.get(path);
      const present = merged.get(path);
      if (node === undefined) {
        if (present !== undefined) merged.remove(path);
        continue;
      }
      if (present === undefined) merged.create(path, node.permissions);
      else merged.setPermissions(path, node.permissions);
      merged.setValue(path, node.value);
    }
    const { domid, quotas } = this.#domain;
    if (merged.ownedBy(domid) > current.ownedBy(domid))
      enforce(this.#personality, quotas, "nodes", merged.ownedBy(domid));
    return merged;
  }
}

export interface CommitResult {
  readonly tree: StoreTree;
  readonly changes: readonly Change[];
}

/** Work on a tree outside of any transaction. */
export class PlainWorkspace implements Workspace {
  readonly tree: StoreTree;
  readonly changes: Change[] = [];

  constructor(tree: StoreTree) {
    this.tree = tree;
  }

  note(change: Change): void {
    this.changes.push(change);
  }

  touch(): void {}

  modify(): void {}
}
