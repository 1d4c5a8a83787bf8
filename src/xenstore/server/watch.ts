// Watches: who wants to hear of which path, and who hears of a change. A change is reported to the watches
// of its path and of every path above; a removal also to those of the removed nodes below, each with its
// own path. Only those hear of it who may read the node, its parent, or the node as it was.
import { isSpecialPath, joinPath, parentPath } from "../../protocol/xs-wire.ts";
import type { Connection } from "./connection.ts";
import { ALLOW_READ, allows, type Actor, type Permissions } from "./permissions.ts";
import { descendants, type StoreNode, type StoreTree } from "./store.ts";

export interface Watch {
  readonly connection: Connection;
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
  readonly #byPath = new Map<string, Set<Watch>>();
  #count = 0;

  get count(): number {
    return this.#count;
  }

  add(watch: Watch): void {
    const watches = this.#byPath.get(watch.path);
    if (watches === undefined) this.#byPath.set(watch.path, new Set([watch]));
    else watches.add(watch);
    this.#count++;
  }

  remove(watch: Watch): void {
    const watches = this.#byPath.get(watch.path);
    if (watches?.delete(watch) !== true) return;
    this.#count--;
    if (watches.size === 0) this.#byPath.delete(watch.path);
  }

  /** Reports `change`; `tree` is the tree after it. */
  fire(change: Change, tree: StoreTree): void {
    const { path, oldPermissions, removed } = change;
    const sight = new Sight(path, oldPermissions, tree);
    let levels = 0;
    for (let at = path; ; at = parentPath(at), levels++) {
      const watches = this.#byPath.get(at);
      if (watches !== undefined) report(watches, levels, sight);
      if (at === "/") break;
    }
    if (removed === undefined) return;
    for (const [below, node] of descendants(path, removed)) {
      const watches = below === path ? undefined : this.#byPath.get(below);
      if (watches !== undefined) report(watches, 0, new Sight(below, node.permissions, tree));
    }
  }

  /**
   * Reports that domain `domid` came or went: `base` is @introduceDomain or @releaseDomain. A watch with a
   * depth hears which domain it was, and `base/<domid>` may be watched itself.
   */
  fireSpecial(base: string, domid: number, permissionsOf: (path: string) => Permissions): void {
    const exact = joinPath(base, String(domid));
    for (const watched of [base, exact])
      for (const watch of this.#byPath.get(watched) ?? [])
        if (allows(watch.connection.domain, permissionsOf(exact), ALLOW_READ))
          watch.connection.sendEvent((watch.depth ?? 0) >= 1 ? exact : watched, watch.token);
  }
}

/** A changed node, for those who watch it. The tree is looked at once, however many they are. */
class Sight {
  readonly path: string;
  readonly #old: Permissions | undefined;
  readonly #tree: StoreTree;
  #permissions: readonly (Permissions | undefined)[] | undefined;

  constructor(path: string, old: Permissions | undefined, tree: StoreTree) {
    this.path = path;
    this.#old = old;
    this.#tree = tree;
  }

  isFor(actor: Actor): boolean {
    if (actor.privileged) return true;
    this.#permissions ??= [
      this.#tree.get(this.path)?.permissions,
      this.#tree.get(parentPath(this.path))?.permissions,
      this.#old,
    ];
    return this.#permissions.some((each) => each !== undefined && allows(actor, each, ALLOW_READ));
  }
}

function report(watches: ReadonlySet<Watch>, levels: number, sight: Sight): void {
  for (const watch of watches)
    if (levels <= (watch.depth ?? levels) && sight.isFor(watch.connection.domain))
      watch.connection.sendEvent(eventPath(watch, sight.path), watch.token);
}

/** `path` as the watch's owner names paths: relative to its directory when it watches a relative one. */
function eventPath(watch: Watch, path: string): string {
  const relative = !watch.givenPath.startsWith("/") && !isSpecialPath(watch.givenPath);
  return relative ? path.slice(watch.connection.domain.path.length + 1) : path;
}
