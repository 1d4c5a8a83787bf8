// A transaction's reads and changes: a tree of names with a mark for each node. Marking a path costs its depth, and
// comparing with a tree costs as much as was marked, however large the tree is.
import { nodeNames } from "../../protocol/xs-wire.ts";
import { MARK_BYTES } from "../bounds.ts";

/** The marks of one node. */
export class Mark {
  /** The outcome depends on this node's state, or on its absence. */
  touched = false;
  /** The node was created, changed or removed. */
  modified = false;
  /** This node or one below it was modified. */
  dirty = false;
  #below: Map<string, Mark> | undefined;

  get below(): Iterable<[name: string, mark: Mark]> {
    return this.#below ?? [];
  }

  get(name: string): Mark | undefined {
    return this.#below?.get(name);
  }

  add(name: string): Mark {
    const mark = new Mark();
    this.#below ??= new Map();
    this.#below.set(name, mark);
    return mark;
  }
}

/** The part of a node needed to mark everything below it. */
interface Branch {
  readonly children: ReadonlyMap<string, Branch>;
}

export class Footprint {
  readonly root = new Mark();
  readonly #admit: (touched: number) => void;
  #touched = 0;
  #bytes = 0;

  /** `admit` is called with the new number of touched nodes before one is added. It throws if that is too many. */
  constructor(admit: (touched: number) => void) {
    this.#admit = admit;
  }

  /** Approximate total memory, in bytes. */
  get bytes(): number {
    return this.#bytes;
  }

  touch(path: string): void {
    this.touchDown(path, path);
  }

  /** Touches every node from `top` down to `path`. */
  touchDown(top: string, path: string): void {
    const first = nodeNames(top).length;
    this.#walk(path, (mark, level) => {
      if (level >= first) this.#touch(mark);
    });
  }

  /** Touches `node`, which is at `path`, and everything below it. */
  touchTree(path: string, node: Branch): void {
    this.#walkTree(path, node, (mark) => this.#touch(mark));
  }

  modify(path: string): void {
    this.#walk(path, markDirty).modified = true;
  }

  /** Modifies every node below `top` down to `path`. */
  modifyDown(top: string, path: string): void {
    const last = nodeNames(top).length;
    this.#walk(path, (mark, level) => {
      markDirty(mark);
      if (level > last) mark.modified = true;
    });
  }

  /** Modifies `node`, which was at `path`, and everything below it. */
  modifyTree(path: string, node: Branch): void {
    this.modify(path);
    this.#walkTree(path, node, (mark) => {
      mark.modified = mark.dirty = true;
    });
  }

  /** Visits the marks from "/" (level 0) down to `path` and returns the last one. */
  #walk(path: string, visit: (mark: Mark, level: number) => void): Mark {
    const before = this.#bytes;
    let mark = this.root;
    let level = 0;
    visit(mark, level);
    for (const name of nodeNames(path)) {
      mark = this.#below(mark, name);
      visit(mark, ++level);
    }
    if (this.#bytes > before) this.#bytes += path.length; // names are slices that keep the path alive
    return mark;
  }

  #walkTree(path: string, node: Branch, visit: (mark: Mark) => void): void {
    const waiting: [Mark, Branch][] = [[this.#walk(path, () => {}), node]];
    for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
      const [mark, branch] = next;
      visit(mark);
      for (const [name, child] of branch.children) waiting.push([this.#below(mark, name), child]);
    }
  }

  #touch(mark: Mark): void {
    if (mark.touched) return;
    this.#admit(this.#touched + 1); // may throw
    this.#touched++;
    mark.touched = true;
  }

  #below(mark: Mark, name: string): Mark {
    const present = mark.get(name);
    if (present !== undefined) return present;
    this.#bytes += MARK_BYTES;
    return mark.add(name);
  }
}

function markDirty(mark: Mark): void {
  mark.dirty = true;
}
