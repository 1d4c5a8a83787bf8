// The tree of nodes. Forking it is cheap and gives a snapshot: nodes are shared, and a tree copies a node
// before it changes it unless it made that copy itself (each tree has a mark, and so have its own nodes).
import { isWithin, joinPath, parentPath } from "../../protocol/xs-wire.ts";
import { assert } from "../../core/errors.ts";
import type { Permissions } from "./permissions.ts";

export interface StoreNode {
  readonly value: Uint8Array;
  readonly permissions: Permissions;
  readonly children: ReadonlyMap<string, StoreNode>;
  /** Bytes of the children's names, each with a NUL: the size of a DIRECTORY reply. */
  readonly childNameBytes: number;
  /** Changes with the node's value, permissions and names of children, and only then. */
  readonly generation: number;
}

interface OwnNode {
  value: Uint8Array;
  permissions: Permissions;
  children: Map<string, OwnNode>;
  childNameBytes: number;
  generation: number;
  /** The tree that may change this object. */
  mark: object;
}

const NO_BYTES = new Uint8Array(0);
/** Generations are never used twice, in any tree of this process. */
let lastGeneration = 0;

export class StoreTree {
  #root: OwnNode;
  #mark = {};
  /** How many nodes each domain owns; zero is absent. */
  readonly #owned: Map<number, number>;
  #version: number;

  private constructor(root: OwnNode | undefined, owned: Map<number, number>, version: number) {
    this.#owned = owned;
    this.#version = version;
    this.#root = root ?? this.#newNode([{ domid: 0, access: "none" }]);
  }

  /** A tree of one node, "/", that belongs to domain 0. */
  static empty(): StoreTree {
    return new StoreTree(undefined, new Map(), 0);
  }

  /** A tree with the same nodes; from here on the two change apart. */
  fork(): StoreTree {
    this.#mark = {};
    return new StoreTree(this.#root, new Map(this.#owned), this.#version);
  }

  /** Equal to another tree's exactly when the two hold the same nodes. */
  get version(): number {
    return this.#version;
  }

  ownedBy(domid: number): number {
    return this.#owned.get(domid) ?? 0;
  }

  get(path: string): StoreNode | undefined {
    let node: OwnNode | undefined = this.#root;
    for (const name of components(path)) {
      node = node.children.get(name);
      if (node === undefined) return undefined;
    }
    return node;
  }

  /** The node at `path`, or the nearest one above it that exists. */
  nearest(path: string): { readonly path: string; readonly node: StoreNode } {
    let node = this.#root;
    let reached = "/";
    for (const name of components(path)) {
      const child = node.children.get(name);
      if (child === undefined) break;
      node = child;
      reached = joinPath(reached, name);
    }
    return { path: reached, node };
  }

  /** Makes an empty node; its parent exists and it does not. */
  create(path: string, permissions: Permissions): void {
    const parent = this.#editable(parentPath(path));
    const name = nameOf(path);
    assert(!parent.children.has(name), "a node is created once");
    parent.children.set(name, this.#newNode(permissions));
    parent.childNameBytes += name.length + 1;
    this.#touch(parent);
  }

  setValue(path: string, value: Uint8Array): void {
    const node = this.#editable(path);
    node.value = value;
    this.#touch(node);
  }

  setPermissions(path: string, permissions: Permissions): void {
    const node = this.#editable(path);
    this.#count(node.permissions, -1);
    this.#count(permissions, 1);
    node.permissions = permissions;
    this.#touch(node);
  }

  /** Removes an existing node other than "/" with all below it, and gives what was removed. */
  remove(path: string): StoreNode {
    const parent = this.#editable(parentPath(path));
    const name = nameOf(path);
    const removed = parent.children.get(name);
    assert(removed !== undefined, "only an existing node is removed");
    parent.children.delete(name);
    parent.childNameBytes -= name.length + 1;
    this.#touch(parent);
    for (const [, node] of descendants(path, removed)) this.#count(node.permissions, -1);
    return removed;
  }

  #newNode(permissions: Permissions): OwnNode {
    this.#count(permissions, 1);
    const generation = (this.#version = ++lastGeneration);
    return {
      value: NO_BYTES,
      permissions,
      children: new Map(),
      childNameBytes: 0,
      generation,
      mark: this.#mark,
    };
  }

  /** The node at an existing path, as an object of this tree alone. */
  #editable(path: string): OwnNode {
    let node = (this.#root = this.#own(this.#root));
    for (const name of components(path)) {
      const child = node.children.get(name);
      assert(child !== undefined, "only an existing node is changed");
      const own = this.#own(child);
      if (own !== child) node.children.set(name, own);
      node = own;
    }
    return node;
  }

  #own(node: OwnNode): OwnNode {
    return node.mark === this.#mark ? node : { ...node, children: new Map(node.children), mark: this.#mark };
  }

  #touch(node: OwnNode): void {
    node.generation = this.#version = ++lastGeneration;
  }

  #count(permissions: Permissions, change: number): void {
    const owner = permissions[0]?.domid ?? 0;
    const count = this.ownedBy(owner) + change;
    if (count === 0) this.#owned.delete(owner);
    else this.#owned.set(owner, count);
  }
}

/** `node`, which is at `path`, and all below it: parents before their children. */
export function* descendants(path: string, node: StoreNode): Generator<[path: string, node: StoreNode]> {
  const waiting: [string, StoreNode][] = [[path, node]];
  for (let entry = waiting.pop(); entry !== undefined; entry = waiting.pop()) {
    yield entry;
    for (const [name, child] of entry[1].children) waiting.push([joinPath(entry[0], name), child]);
  }
}

/** The paths from right below `ancestor` down to `path`. */
export function pathsBetween(ancestor: string, path: string): string[] {
  const paths: string[] = [];
  for (let at = path; at !== ancestor && isWithin(at, ancestor); at = parentPath(at)) paths.unshift(at);
  return paths;
}

function components(path: string): string[] {
  return path === "/" ? [] : path.slice(1).split("/");
}

function nameOf(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}
