// Watches: who watches which path, and who is notified of a change. A change is reported to the watches of its path and
// of every path above it. A removal is also reported to those of the removed nodes below, each with its own path. Only
// clients that may read the node, its parent, or the node as it was are notified.
import { isSpecialPath, joinPath, parentPath } from "../../protocol/xs-wire.ts";
import { hashBelow, hashesDownTo, ROOT_HASH } from "./path-hash.ts";
import { ALLOW_READ, allows, type Actor, type Permissions } from "./permissions.ts";
import type { StoreNode, StoreTree } from "./store.ts";

/** The client that a watch belongs to. */
export interface Watcher {
  readonly domain: Actor & { readonly path: string };
  sendEvent(path: string, token: string): void;
}

export interface Watch {
  readonly watcher: Watcher;
  /** Absolute, or special. */
  readonly path: string;
  /** The path as the client wrote it. Events use the same form. */
  readonly givenPath: string;
  readonly token: string;
  /** Number of levels below the path to report; undefined: all. */
  readonly depth: number | undefined;
}

/** A change of one node, as needed by the watches. */
export interface Change {
  readonly path: string;
  /** Permissions of the node before the change, if it existed. */
  readonly oldPermissions: Permissions | undefined;
  /** The removed node, with everything that was below it. */
  readonly removed: StoreNode | undefined;
}

export class WatchRegistry {
  /** Watches by the hash of their path. */
  readonly #watches = new Map<number, Set<Watch>>();
  #count = 0;

  get count(): number {
    return this.#count;
  }

  add(watch: Watch): void {
    const hash = hashOf(watch.path);
    const watches = this.#watches.get(hash);
    if (watches === undefined) this.#watches.set(hash, new Set([watch]));
    else watches.add(watch);
    this.#count++;
  }

  remove(watch: Watch): void {
    const hash = hashOf(watch.path);
    const watches = this.#watches.get(hash);
    if (watches?.delete(watch) !== true) return;
    this.#count--;
    if (watches.size === 0) this.#watches.delete(hash);
  }

  /** Reports `change`; `tree` is the tree after the change. */
  fire(change: Change, tree: StoreTree): void {
    if (this.#count === 0) return;
    const { path, oldPermissions, removed } = change;
    const view = new ChangedNode(path, oldPermissions, tree);
    const above = [...hashesDownTo(path)];
    for (const [levels, [hash, length]] of above.toReversed().entries()) {
      const watches = this.#watches.get(hash);
      if (watches !== undefined) report(watches, path.slice(0, length), levels, view);
    }
    if (removed !== undefined) this.#fireBelow(path, removed, tree);
  }

  #fireBelow(path: string, removed: StoreNode, tree: StoreTree): void {
    const waiting: [path: string, hash: number, node: StoreNode][] = [[path, hashOf(path), removed]];
    for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
      const [at, hash, node] = next;
      const watches = node === removed ? undefined : this.#watches.get(hash);
      if (watches !== undefined) report(watches, at, 0, new ChangedNode(at, node.permissions, tree));
      for (const [name, child] of node.children)
        waiting.push([joinPath(at, name), hashBelow(hash, name), child]);
    }
  }

  /**
   * Reports that domain `domid` came or went: `base` is @introduceDomain or @releaseDomain. A watch with a depth learns
   * which domain it was, and `base/<domid>` may be watched itself.
   */
  fireSpecial(base: string, domid: number, permissionsOf: (path: string) => Permissions): void {
    const exact = joinPath(base, String(domid));
    for (const watched of [base, exact])
      for (const watch of this.#watches.get(hashOf(watched)) ?? [])
        if (watch.path === watched && allows(watch.watcher.domain, permissionsOf(exact), ALLOW_READ))
          watch.watcher.sendEvent((watch.depth ?? 0) >= 1 ? exact : watched, watch.token);
  }
}

/** A changed node, for its watchers. The tree is read only once, however many there are. */
class ChangedNode {
  readonly path: string;
  readonly #old: Permissions | undefined;
  readonly #tree: StoreTree;
  #permissions: readonly (Permissions | undefined)[] | undefined;

  constructor(path: string, old: Permissions | undefined, tree: StoreTree) {
    this.path = path;
    this.#old = old;
    this.#tree = tree;
  }

  isVisibleTo(actor: Actor): boolean {
    if (actor.privileged) return true;
    this.#permissions ??= [
      this.#tree.get(this.path)?.permissions,
      this.#tree.get(parentPath(this.path))?.permissions,
      this.#old,
    ];
    return this.#permissions.some((each) => each !== undefined && allows(actor, each, ALLOW_READ));
  }
}

/** Reports a change `levels` below `watched` to those of `watches` that watch exactly that path. */
function report(watches: ReadonlySet<Watch>, watched: string, levels: number, changed: ChangedNode): void {
  for (const watch of watches)
    if (
      watch.path === watched &&
      levels <= (watch.depth ?? levels) &&
      changed.isVisibleTo(watch.watcher.domain)
    )
      watch.watcher.sendEvent(eventPath(watch, changed.path), watch.token);
}

/** `path` in the form used by the watch's owner: relative to its directory if it watches a relative path. */
function eventPath(watch: Watch, path: string): string {
  const relative = !watch.givenPath.startsWith("/") && !isSpecialPath(watch.givenPath);
  return relative ? path.slice(watch.watcher.domain.path.length + 1) : path;
}

/** The hash of a path. A special path is hashed by its text. */
function hashOf(path: string): number {
  let last = ROOT_HASH;
  for (const [hash] of hashesDownTo(path)) last = hash;
  return last;
}
