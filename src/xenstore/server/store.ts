// The tree of nodes. Forking it is cheap and makes a snapshot: nodes are shared, and a tree copies a node before
// changing it unless it made that copy itself. For that, each tree has a mark that its own nodes carry.
import { joinPath, nodeNames, parentPath } from "../../protocol/xs-wire.ts";
import { assert } from "../../core/errors.ts";
import type { Footprint, Mark } from "./footprint.ts";
import type { Permissions } from "./permissions.ts";
import { CHILD_BYTES, NODE_BYTES } from "../bounds.ts";

export interface StoreNode {
  readonly value: Uint8Array;
  readonly permissions: Permissions;
  readonly children: ReadonlyMap<string, StoreNode>;
  /** Size of the children's names in bytes, each with a NUL: the size of a DIRECTORY reply. */
  readonly childNameBytes: number;
  /** Changes whenever the node's value, permissions or child names change, and only then. */
  readonly generation: number;
}

interface OwnNode {
  value: Uint8Array;
  permissions: Permissions;
  children: Map<string, OwnNode>;
  childNameBytes: number;
  generation: number;
  /** Mark of the tree that may change this object. */
  mark: object;
}

/** A removed node with everything that was below it. */
export interface Removed {
  readonly path: string;
  readonly node: StoreNode;
}

const NO_BYTES = new Uint8Array(0);
/** Shared by all nodes without children. Never changed. */
const NO_CHILDREN = new Map<string, OwnNode>();
/** Generations are never reused in any tree of this process. */
let lastGeneration = 0;

export class StoreTree {
  #root: OwnNode;
  #mark = {};
  /** Number of nodes that each domain owns; domains with none are absent. */
  readonly #owned: Map<number, number>;
  #version: number;
  #turnover: number;

  private constructor(from: StoreTree | undefined) {
    this.#owned = new Map(from === undefined ? [] : from.#owned);
    this.#version = from === undefined ? 0 : from.#version;
    this.#turnover = from === undefined ? 0 : from.#turnover;
    this.#root = from === undefined ? this.#newNode([{ domid: 0, access: "none" }]) : from.#root;
  }

  /** A tree with a single node, "/", which belongs to domain 0. */
  static empty(): StoreTree {
    return new StoreTree(undefined);
  }

  /** Creates a tree with the same nodes. From then on the two change independently. */
  fork(): StoreTree {
    this.#mark = {};
    return new StoreTree(this);
  }

  /** Equal to another tree's version exactly when the two hold the same nodes. */
  get version(): number {
    return this.#version;
  }

  /**
   * Grows with each node created, copied, changed or removed, by about the bytes that it takes. What this tree does not
   * share with a fork is smaller than the growth since that fork.
   */
  get turnover(): number {
    return this.#turnover;
  }

  ownedBy(domid: number): number {
    return this.#owned.get(domid) ?? 0;
  }

  /** Number of nodes. */
  get size(): number {
    return this.#owned.values().reduce((sum, count) => sum + count, 0);
  }

  get(path: string): StoreNode | undefined {
    let node: OwnNode | undefined = this.#root;
    for (const name of nodeNames(path)) {
      node = node.children.get(name);
      if (node === undefined) return undefined;
    }
    return node;
  }

  /** The node at `path`, or its nearest existing ancestor. */
  nearest(path: string): { readonly path: string; readonly node: StoreNode } {
    let node = this.#root;
    let length = 0;
    for (const name of nodeNames(path)) {
      const child = node.children.get(name);
      if (child === undefined) break;
      node = child;
      length += 1 + name.length;
    }
    return { path: length === 0 ? "/" : path.slice(0, length), node };
  }

  /** Creates an empty node where there is none, and any missing ancestors, with these permissions. */
  create(path: string, permissions: Permissions): void {
    let node = (this.#root = this.#own(this.#root));
    let made = false;
    for (const name of nodeNames(path)) {
      const child = node.children.get(name);
      made = child === undefined;
      node =
        child === undefined ? this.#addChild(node, name, permissions) : this.#ownChild(node, name, child);
    }
    assert(made, "a node is created once");
  }

  setValue(path: string, value: Uint8Array): void {
    this.#setValue(this.#editable(path), value);
  }

  setPermissions(path: string, permissions: Permissions): void {
    this.#setPermissions(this.#editable(path), permissions);
  }

  /** Removes an existing node other than "/" with everything below it, and returns it. */
  remove(path: string): StoreNode {
    const parent = this.#editable(parentPath(path));
    const name = path.slice(path.lastIndexOf("/") + 1);
    const removed = parent.children.get(name);
    assert(removed !== undefined, "only an existing node is removed");
    this.#dropChild(parent, name, removed);
    return removed;
  }

  /**
   * Removes the nodes that a domain owns, with everything below them, and its entries from other nodes' permissions.
   */
  removeDomain(domid: number): Removed[] {
    const removed: Removed[] = [];
    this.#root = this.#withoutDomain(domid, "/", this.#root, removed);
    return removed;
  }

  /** Whether everything that `footprint` touched is the same here and in `other`, a tree of the same origin. */
  agreesWith(other: StoreTree, footprint: Footprint): boolean {
    return agree(this.#root, other.#root, footprint.root);
  }

  /** Makes everything that `footprint` marks as modified the same as in `source`. */
  graft(source: StoreTree, footprint: Footprint): void {
    this.#root = this.#own(this.#root);
    this.#graft(this.#root, source.#root, footprint.root);
  }

  #graft(node: OwnNode, source: OwnNode, mark: Mark): void {
    if (mark.modified) {
      this.#setPermissions(node, source.permissions);
      this.#setValue(node, source.value);
    }
    for (const [name, below] of mark.below) {
      if (!below.dirty) continue;
      const child = node.children.get(name);
      const wanted = source.children.get(name);
      if (wanted !== undefined) {
        const own =
          child === undefined
            ? this.#addChild(node, name, wanted.permissions)
            : this.#ownChild(node, name, child);
        this.#graft(own, wanted, below);
      } else if (child !== undefined && below.modified) this.#dropChild(node, name, child);
    }
    // Since the node was touched, nobody else has created or removed children of it. DIRECTORY lists children in
    // creation order, so take over that of `source`.
    if (mark.touched && mark.dirty) node.children = inOrderOf(source.children, node.children);
  }

  #withoutDomain(domid: number, path: string, node: OwnNode, removed: Removed[]): OwnNode {
    let result = node;
    if (node.permissions.some((each, index) => index > 0 && each.domid === domid)) {
      result = this.#own(node);
      const others = node.permissions.filter((each, index) => index === 0 || each.domid !== domid);
      this.#setPermissions(result, others);
    }
    for (const [name, child] of node.children) {
      const below = joinPath(path, name);
      const isTheirs = child.permissions[0]?.domid === domid;
      const kept = isTheirs ? undefined : this.#withoutDomain(domid, below, child, removed);
      if (kept === child) continue;
      result = this.#own(result);
      if (kept !== undefined) result.children.set(name, kept);
      else {
        this.#dropChild(result, name, child);
        removed.push({ path: below, node: child });
      }
    }
    return result;
  }

  #newNode(permissions: Permissions): OwnNode {
    this.#count(permissions, 1);
    this.#turnover += NODE_BYTES;
    const generation = (this.#version = ++lastGeneration);
    return {
      value: NO_BYTES,
      permissions,
      children: NO_CHILDREN,
      childNameBytes: 0,
      generation,
      mark: this.#mark,
    };
  }

  #addChild(parent: OwnNode, name: string, permissions: Permissions): OwnNode {
    const child = this.#newNode(permissions);
    if (parent.children === NO_CHILDREN) parent.children = new Map();
    parent.children.set(name, child);
    parent.childNameBytes += name.length + 1;
    this.#touch(parent);
    return child;
  }

  #dropChild(parent: OwnNode, name: string, child: OwnNode): void {
    parent.children.delete(name);
    parent.childNameBytes -= name.length + 1;
    this.#touch(parent);
    const waiting = [child];
    for (let node = waiting.pop(); node !== undefined; node = waiting.pop()) {
      this.#count(node.permissions, -1);
      this.#turnover += bytesOf(node);
      for (const below of node.children.values()) waiting.push(below);
    }
  }

  #setValue(node: OwnNode, value: Uint8Array): void {
    node.value = value;
    this.#turnover += value.length;
    this.#touch(node);
  }

  #setPermissions(node: OwnNode, permissions: Permissions): void {
    this.#count(node.permissions, -1);
    this.#count(permissions, 1);
    node.permissions = permissions;
    this.#touch(node);
  }

  /** The node at an existing path, as an object that only this tree uses. */
  #editable(path: string): OwnNode {
    let node = (this.#root = this.#own(this.#root));
    for (const name of nodeNames(path)) {
      const child = node.children.get(name);
      assert(child !== undefined, "only an existing node is changed");
      node = this.#ownChild(node, name, child);
    }
    return node;
  }

  #ownChild(parent: OwnNode, name: string, child: OwnNode): OwnNode {
    const own = this.#own(child);
    if (own !== child) parent.children.set(name, own);
    return own;
  }

  #own(node: OwnNode): OwnNode {
    if (node.mark === this.#mark) return node;
    this.#turnover += bytesOf(node);
    const children = node.children.size === 0 ? NO_CHILDREN : new Map(node.children);
    return { ...node, children, mark: this.#mark };
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

/** `children` in the order of `others`, which has the same names. */
function inOrderOf(
  others: ReadonlyMap<string, OwnNode>,
  children: ReadonlyMap<string, OwnNode>,
): Map<string, OwnNode> {
  const ordered = new Map<string, OwnNode>();
  for (const name of others.keys()) {
    const child = children.get(name);
    assert(child !== undefined, "what a transaction touched is as it left it");
    ordered.set(name, child);
  }
  return ordered.size === 0 ? NO_CHILDREN : ordered;
}

function bytesOf(node: OwnNode): number {
  return NODE_BYTES + node.value.length + CHILD_BYTES * node.children.size;
}

function agree(one: OwnNode | undefined, other: OwnNode | undefined, mark: Mark): boolean {
  if (one === other) return true; // shared, including everything below
  if (mark.touched && one?.generation !== other?.generation) return false;
  for (const [name, below] of mark.below)
    if (!agree(one?.children.get(name), other?.children.get(name), below)) return false;
  return true;
}
