// Watches: who wants to hear of which path, and who hears of a change. A change is reported to the watches
// of its path and of every path above; a removal also to those of the removed nodes below, each with its
// own path. Only those hear of it who may read the node, its parent, or the node as it was.
import { isSpecialPath, joinPath, parentPath } from "../../protocol/xs-wire.ts";
import type { Connection } from "./connection.ts";
import { ALLOW_READ, allows, type Permissions } from "./permissions.ts";
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
    let levels = 0;
    for (let at = change.path; ; at = parentPath(at), levels++) {
      this.#report(at, levels, change.path, change.oldPermissions, tree);
      if (at === "/") break;
    }
    if (change.removed === undefined) return;
    for (const [path, node] of descendants(change.path, change.removed))
      if (path !== change.path) this.#report(path, 0, path, node.permissions, tree);
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

  #report(
    watched: string,
    levels: number,
    path: string,
    old: Permissions | undefined,
    tree: StoreTree,
  ): void {
    const watches = this.#byPath.get(watched);
    if (watches === undefined) return;
    for (const watch of watches)
      if (levels <= (watch.depth ?? levels) && maySee(watch, path, old, tree))
        watch.connection.sendEvent(eventPath(watch, path), watch.token);
  }
}

function maySee(watch: Watch, path: string, old: Permissions | undefined, tree: StoreTree): boolean {
  const actor = watch.connection.domain;
  if (actor.privileged) return true;
  const candidates = [tree.get(path)?.permissions, tree.get(parentPath(path))?.permissions, old];
  return candidates.some(
    (permissions) => permissions !== undefined && allows(actor, permissions, ALLOW_READ),
  );
}

/** `path` as the watch's owner names paths: relative to its directory when it watches a relative one. */
function eventPath(watch: Watch, path: string): string {
  const relative = !watch.givenPath.startsWith("/") && !isSpecialPath(watch.givenPath);
  return relative ? path.slice(watch.connection.domain.path.length + 1) : path;
}
