// A xenstore server that is too simple to be wrong: a flat map of nodes, copied whole for each transaction, and
// one function a request. It knows the two ways to find conflicts: a number on each node that changes with it, as
// C xenstored, and doing all requests again, as oxenstored.
import type { Personality } from "../../src/xenstore/server/personality.ts";
import type { Permissions } from "../../src/xenstore/server/permissions.ts";
import type { Quotas } from "../../src/xenstore/server/quota.ts";

interface ModelNode {
  readonly value: string;
  readonly permissions: Permissions;
  /** Another one after each change of the node itself or of its children's names. */
  readonly generation: number;
}

interface ModelChange {
  readonly path: string;
  readonly old: Permissions | undefined;
  /** The permissions of what is gone, by path. */
  readonly removed: ReadonlyMap<string, Permissions>;
}

export interface ModelWatch {
  readonly client: number;
  readonly path: string;
  readonly givenPath: string;
  readonly token: string;
  readonly depth: number;
}

/** A request on nodes. `path` is absolute. */
export interface NodeRequest {
  readonly kind: "read" | "list" | "perms" | "write" | "mkdir" | "rm" | "chmod";
  readonly domid: number;
  readonly path: string;
  readonly value: string;
  readonly permissions: Permissions;
}

const READING: ReadonlySet<string> = new Set(["read", "list", "perms"]);
let lastGeneration = 0;

class Failure extends Error {}

function fail(errno: string): never {
  throw new Failure(errno);
}

export function parentOf(path: string): string {
  return path.slice(0, path.lastIndexOf("/")) || "/";
}

function letters(permissions: Permissions): string {
  const letter = { none: "n", read: "r", write: "w", both: "b" };
  return permissions.map(({ domid, access }) => `${letter[access]}${domid}|`).join("");
}

function allows(domid: number, permissions: Permissions, wanted: "read" | "write" | "own"): boolean {
  const [first, ...others] = permissions;
  if (domid === 0 || first?.domid === domid) return true;
  if (wanted === "own") return false;
  const access = (others.find((each) => each.domid === domid) ?? first)?.access;
  return access === "both" || access === wanted;
}

/** Nodes, and what requests did to them. */
export class View {
  readonly nodes: Map<string, ModelNode>;
  readonly touched = new Set<string>();
  readonly modified = new Set<string>();
  changes: ModelChange[] = [];
  version: number;
  readonly #rules: Rules;

  constructor(rules: Rules, from?: View) {
    this.#rules = rules;
    this.nodes = new Map(from?.nodes);
    this.version = from?.version ?? 0;
  }

  owned(domid: number): number {
    return [...this.nodes.values()].filter(({ permissions }) => permissions[0]?.domid === domid).length;
  }

  below(path: string): string[] {
    const start = path === "/" ? "/" : `${path}/`;
    return [...this.nodes.keys()].filter((each) => each !== path && each.startsWith(start));
  }

  childrenOf(path: string): string[] {
    return this.below(path).filter((each) => parentOf(each) === path);
  }

  set(path: string, change: Partial<ModelNode>): void {
    this.version = ++lastGeneration;
    const present = this.nodes.get(path) ?? { value: "", permissions: [] };
    this.nodes.set(path, { ...present, ...change, generation: this.version });
  }

  /** Removes what is there with all below, and returns the permissions that it had. */
  remove(path: string): Map<string, Permissions> {
    const gone = new Map<string, Permissions>();
    for (const each of [path, ...this.below(path)]) {
      gone.set(each, this.nodes.get(each)?.permissions ?? []);
      this.nodes.delete(each);
    }
    this.set(parentOf(path), {});
    return gone;
  }

  /** The reply's text, or the errno. */
  perform(request: NodeRequest): string {
    try {
      return this[request.kind](request);
    } catch (error) {
      if (error instanceof Failure) return error.message;
      throw error;
    }
  }

  read(request: NodeRequest): string {
    return this.#find(request, "read").value;
  }

  list(request: NodeRequest): string {
    this.#find(request, "read");
    const names = this.childrenOf(request.path).map((each) => each.slice(each.lastIndexOf("/") + 1));
    return names.map((name) => `${name}|`).join("");
  }

  perms(request: NodeRequest): string {
    return letters(this.#find(request, "read").permissions);
  }

  write(request: NodeRequest): string {
    const old = this.#make(request);
    this.set(request.path, { value: request.value });
    this.modified.add(request.path);
    this.#note(request.path, old);
    return "OK|";
  }

  mkdir(request: NodeRequest): string {
    const old = this.#make(request);
    if (old === undefined) this.#note(request.path, undefined);
    return "OK|";
  }

  rm({ domid, path }: NodeRequest): string {
    const [near, node] = this.#nearest(path);
    this.touched.add(path).add(parentOf(path));
    if (!allows(domid, node.permissions, "write")) fail("EACCES");
    if (near !== path) return near === parentOf(path) ? "OK|" : fail("ENOENT");
    const removed = this.remove(path);
    for (const each of removed.keys()) {
      this.touched.add(each);
      this.modified.add(each);
    }
    this.#note(path, removed.get(path), removed);
    return "OK|";
  }

  chmod(request: NodeRequest): string {
    const { domid, path, permissions } = request;
    const { personality, quotas, domainExists } = this.#rules;
    if (domid !== 0 && permissions.length > quotas.permissions) fail(personality.quotaErrno.permissions);
    const old = this.#find(request, "own").permissions;
    if (domid !== 0 && permissions[0]?.domid !== old[0]?.domid) fail("EPERM");
    const { checksDomains } = personality;
    if (checksDomains && !domainExists(permissions[0]?.domid ?? 0)) fail("ENOENT");
    const known = permissions.filter((each) => !checksDomains || domainExists(each.domid));
    this.set(path, { permissions: known });
    this.modified.add(path);
    this.#note(path, old);
    return "OK|";
  }

  #nearest(path: string): [path: string, node: ModelNode] {
    for (let at = path; ; at = parentOf(at)) {
      const node = this.nodes.get(at);
      if (node !== undefined) return [at, node];
    }
  }

  #find({ domid, path }: NodeRequest, wanted: "read" | "own"): ModelNode {
    const [near, node] = this.#nearest(path);
    this.touched.add(path);
    if (!allows(domid, node.permissions, wanted)) fail("EACCES");
    return near === path ? node : fail("ENOENT");
  }

  /** Makes what is missing of a path, and returns the permissions that were there. */
  #make({ domid, path }: NodeRequest): Permissions | undefined {
    const [near, { permissions }] = this.#nearest(path);
    this.touched.add(path);
    if (!allows(domid, permissions, "write")) fail("EACCES");
    if (near === path) return permissions;
    const missing: string[] = [];
    for (let at = path; at !== near; at = parentOf(at)) missing.unshift(at);
    const inherits = domid === 0 || permissions[0]?.domid === domid;
    const own = inherits
      ? permissions
      : [{ domid, access: permissions[0]?.access ?? "none" }, ...permissions.slice(1)];
    const { personality, quotas } = this.#rules;
    if (domid !== 0 && this.owned(domid) + missing.length > quotas.nodes) fail(personality.quotaErrno.nodes);
    this.touched.add(near);
    for (const each of missing) {
      this.touched.add(each);
      this.modified.add(each);
      this.set(each, { permissions: own });
      this.set(parentOf(each), {});
    }
    return undefined;
  }

  #note(path: string, old: Permissions | undefined, removed: ModelChange["removed"] = new Map()): void {
    this.changes.push({ path, old, removed });
  }
}

/** What holds for all views of a server. */
export interface Rules {
  readonly personality: Personality;
  readonly quotas: Quotas;
  readonly domainExists: (domid: number) => boolean;
}

interface ModelTransaction {
  readonly view: View;
  readonly base: View;
  readonly log: { readonly request: NodeRequest; readonly reply: string }[];
}

export class Model {
  readonly #rules: Rules;
  current: View;
  watches: ModelWatch[] = [];

  constructor(rules: Rules) {
    this.#rules = rules;
    this.current = new View(rules);
  }

  begin(): ModelTransaction {
    return { view: new View(this.#rules, this.current), base: new View(this.#rules, this.current), log: [] };
  }

  /** A request outside of transactions: its reply and its changes. */
  perform(request: NodeRequest): string {
    return this.current.perform(request);
  }

  performIn(transaction: ModelTransaction, request: NodeRequest): string {
    const reply = transaction.view.perform(request);
    transaction.log.push({ request, reply });
    return reply;
  }

  /** OK, or the errno. */
  commit(transaction: ModelTransaction, domid: number): string {
    const { view, base, log } = transaction;
    const replays = this.#rules.personality.conflicts === "replay";
    if (base.version === this.current.version) {
      if (view.modified.size > 0) this.current = view;
      if (!replays) this.current.changes = toldChanges(view, base);
      return "OK|";
    }
    return replays ? this.#replay(log) : this.#merge(view, base, domid);
  }

  #replay(log: ModelTransaction["log"]): string {
    if (log.every(({ request }) => READING.has(request.kind))) return "OK|";
    const again = new View(this.#rules, this.current);
    for (const { request, reply } of log) if (again.perform(request) !== reply) return "EAGAIN";
    this.current = again;
    return "OK|";
  }

  #merge(view: View, base: View, domid: number): string {
    for (const path of view.touched)
      if (base.nodes.get(path)?.generation !== this.current.nodes.get(path)?.generation) return "EAGAIN";
    const merged = new View(this.#rules, this.current);
    for (const path of view.modified) {
      const node = view.nodes.get(path);
      const present = merged.nodes.has(path);
      if (node === undefined && present) merged.remove(path);
      if (node === undefined) continue;
      if (!present) merged.set(parentOf(path), {});
      merged.set(path, node);
    }
    const { personality, quotas } = this.#rules;
    const owned = merged.owned(domid);
    if (domid !== 0 && owned > quotas.nodes && owned > this.current.owned(domid))
      return personality.quotaErrno.nodes;
    merged.changes = toldChanges(view, base);
    this.current = merged;
    return "OK|";
  }

  /** A domain died: its nodes go, and its name from the permissions of others. */
  die(domid: number): void {
    const view = this.current;
    for (const path of [...view.nodes.keys()].sort()) {
      const permissions = view.nodes.get(path)?.permissions;
      if (permissions === undefined) continue;
      if (permissions[0]?.domid === domid) {
        const removed = view.remove(path);
        view.changes.push({ path, old: permissions, removed });
      } else if (permissions.some((each) => each.domid === domid))
        view.set(path, { permissions: permissions.filter((each) => each.domid !== domid) });
    }
  }

  /** Takes the changes since the last time, as events for each client: `path token`. */
  takeEvents(domidOf: (client: number) => number): Map<number, string[]> {
    const events = new Map<number, string[]>();
    for (const { path, old, removed } of this.current.changes.splice(0)) {
      for (const watch of this.watches) {
        const levels = levelsBetween(watch.path, path);
        if (levels !== undefined && levels <= watch.depth) this.#report(watch, path, old, events, domidOf);
        const gone = watch.path === path ? undefined : removed.get(watch.path);
        if (gone !== undefined) this.#report(watch, watch.path, gone, events, domidOf);
      }
    }
    return events;
  }

  #report(
    watch: ModelWatch,
    path: string,
    old: Permissions | undefined,
    events: Map<number, string[]>,
    domidOf: (client: number) => number,
  ): void {
    const domid = domidOf(watch.client);
    const { nodes } = this.current;
    const readable = [nodes.get(path)?.permissions, nodes.get(parentOf(path))?.permissions, old];
    if (domid !== 0 && !readable.some((each) => each !== undefined && allows(domid, each, "read"))) return;
    const shown = watch.givenPath.startsWith("/") ? path : path.slice(`/local/domain/${domid}/`.length);
    events.set(watch.client, [...(events.get(watch.client) ?? []), `${shown} ${watch.token}`]);
  }
}

/** How far `path` is below `ancestor`; undefined when it is not. */
function levelsBetween(ancestor: string, path: string): number | undefined {
  let levels = 0;
  for (let at = path; at !== ancestor; at = parentOf(at), levels++) if (at === "/") return undefined;
  return levels;
}

/** Merged, and without what was made and removed in between. */
function toldChanges(view: View, base: View): ModelChange[] {
  return mergeChanges(view.changes).filter(({ path }) => base.nodes.has(path) || view.nodes.has(path));
}

/** As C xenstored: one event a path, where the path was first changed. */
function mergeChanges(changes: readonly ModelChange[]): ModelChange[] {
  const merged = new Map<string, ModelChange>();
  for (const change of changes) {
    const first = merged.get(change.path);
    const removed = change.removed.size > 0 ? change.removed : (first?.removed ?? change.removed);
    merged.set(change.path, {
      path: change.path,
      old: first === undefined ? change.old : first.old,
      removed,
    });
  }
  return [...merged.values()];
}
