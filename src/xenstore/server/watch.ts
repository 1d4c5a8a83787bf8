// Watches: who wants to hear of which path, and who hears of a change. A change is reported to the watches
// of its path and of every path above; a removal also to those of the removed nodes below, each with its
// own path. Only those hear of it who may read the node, its parent, or the node as it was.
import { isSpecialPath, joinPath, parentPath } from "../../protocol/xs-wire.ts";
import { hashBelow, hashesDownTo, ROOT_HASH } from "./path-hash.ts";
import { ALLOW_READ, allows, type Actor, type Permissions } from "./permissions.ts";
import type { StoreNode, StoreTree } from "./store.ts";

/** Whom a watch is for. */
export interface Watcher {
  readonly domain: Actor & { readonly path: string };
  sendEvent(path: string, token: string): void;
}

export interface Watch {
  readonly watcher: Watcher;
  /** Absolute, or special. */
  readonly path: string;
  /** As the client wrote it. Events name paths the same way. */
  readonly givenPath: string;
  readonly token: string;
  /** Levels below the path that are reported; undefined: all. */
  readonly depth: number | undefined;
}

/** What happened to one node, for the watches. */
export interface Change {
  readonly path: string;
  /** Permissions of the node before the change, where there was one. */
  readonly oldPermissions: Permissions | undefined;
  /** The node that is gone, with all that was below it. */
  readonly removed: StoreNode | undefined;
}

export class WatchRegistry {
  /** By the path's number. */
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

  /** Reports `change`; `tree` is the tree after it. */
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
   * Reports that domain `domid` came or went: `base` is @introduceDomain or @releaseDomain. A watch with a
   * depth hears which domain it was, and `base/<domid>` may be watched itself.
   */
  fireSpecial(base: string, domid: number, permissionsOf: (path: string) => Permissions): void {
    const exact = joinPath(base, String(domid));
    for (const watched of [base, exact])
      for (const watch of this.#watches.get(hashOf(watched)) ?? [])
        if (watch.path === watched && allows(watch.watcher.domain, permissionsOf(exact), ALLOW_READ))
          watch.watcher.sendEvent((watch.depth ?? 0) >= 1 ? exact : watched, watch.token);
  }
}

/** A changed node, for those who watch it. The tree is looked at once, however many they are. */
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

/** Reports a change `levels` below `watched` to those of `watches` who watch exactly that path. */
function report(watches: ReadonlySet<Watch>, watched: string, levels: number, changed: ChangedNode): void {
  for (const watch of watches)
    if (
      watch.path === watched &&
      levels <= (watch.depth ?? levels) &&
      changed.isVisibleTo(watch.watcher.domain)
    )
      watch.watcher.sendEvent(eventPath(watch, changed.path), watch.token);
}

/** `path` as the watch's owner names paths: relative to its directory when it watches a relative one. */
function eventPath(watch: Watch, path: string): string {
  const relative = !watch.givenPath.startsWith("/") && !isSpecialPath(watch.givenPath);
  return relative ? path.slice(watch.watcher.domain.path.length + 1) : path;
}

/** A special path's is that of its text. */
function hashOf(path: string): number {
  let last = ROOT_HASH;
  for (const [hash] of hashesDownTo(path)) last = hash;
  return last;
}
