// Requests on nodes: read, list, write, create, remove, permissions. Each works on the workspace of its transaction, or
// on a plain one outside any. It checks everything before it changes anything, and notes its changes.
import {
  encodeStrings,
  formatPermission,
  isSpecialPath,
  nodeNames,
  parentPath,
  parsePermission,
  XS_PAYLOAD_MAX,
} from "../../protocol/xs-wire.ts";
import { ALLOW_OWNER, ALLOW_READ, ALLOW_WRITE, allows, inherit, type Permissions } from "./permissions.ts";
import { enforce } from "./personality.ts";
import { fail } from "./quota.ts";
import { nodePath, number, OK, splitFirst, strings, watchablePath, type Request } from "./request.ts";
import type { StoreNode } from "./store.ts";

/** Bytes for a node's own bookkeeping and for each permission, where they count towards the node's size. */
const NODE_HEADER_BYTES = 20;
const PERMISSION_BYTES = 4;

export function read(request: Request): Uint8Array {
  const [text] = strings(request, 1) as [string];
  return lookUp(request, nodePath(request, text), ALLOW_READ).value;
}

export function directory(request: Request): Uint8Array {
  const [text] = strings(request, 1) as [string];
  const node = lookUp(request, nodePath(request, text), ALLOW_READ);
  if (node.childNameBytes > XS_PAYLOAD_MAX && request.server.personality.oversizeReply === "E2BIG")
    fail("E2BIG"); // before all the names are assembled
  return encodeStrings(...node.children.keys());
}

/** `<generation>\0<names…>`: complete names from the offset on, and an additional NUL after the very last one. */
export function directoryPart(request: Request): Uint8Array {
  const { directoryPart: allowed } = request.server.personality;
  if (allowed === "nobody") fail("ENOSYS");
  if (allowed === "dom0" && !request.domain.privileged) fail("EACCES");
  const [text, offsetText] = strings(request, 2) as [string, string];
  const offset = number(offsetText);
  const node = lookUp(request, nodePath(request, text), ALLOW_READ);
  const generation = encodeStrings(String(node.generation));
  const { names, last } = namesFrom(node, offset, XS_PAYLOAD_MAX - generation.length - 1);
  const reply = new Uint8Array(generation.length + names.length + (last ? 1 : 0));
  reply.set(generation);
  reply.set(names, generation.length);
  return reply;
}

/** The children's names, each with its NUL, from byte `offset` on: as many complete ones as fit into `room` bytes. */
function namesFrom(
  node: StoreNode,
  offset: number,
  room: number,
): { readonly names: Uint8Array; readonly last: boolean } {
  const start = Math.min(offset, node.childNameBytes);
  const parts: string[] = [];
  let at = 0;
  let end = start;
  for (const name of node.children.keys()) {
    const next = at + name.length + 1;
    if (next > start + room) break;
    if (next > start) {
      parts.push(name.slice(Math.max(0, start - at)));
      end = next;
    }
    at = next;
  }
  return { names: encodeStrings(...parts), last: end === node.childNameBytes };
}

export function write(request: Request): Uint8Array {
  const { first, rest: value } = splitFirst(request.packet.payload);
  const path = nodePath(request, first);
  const old = prepare(request, path, value);
  request.work.tree.setValue(path, value);
  request.work.footprint?.modify(path);
  request.work.note({ path, oldPermissions: old?.permissions, removed: undefined });
  return OK;
}

export function mkdir(request: Request): Uint8Array {
  const [text] = strings(request, 1) as [string];
  const path = nodePath(request, text);
  if (prepare(request, path, undefined) === undefined)
    request.work.note({ path, oldPermissions: undefined, removed: undefined });
  return OK;
}

export function remove(request: Request): Uint8Array {
  const [text] = strings(request, 1) as [string];
  const path = nodePath(request, text);
  const { work, domain, server } = request;
  if (path === "/") {
    if (server.personality.removeRoot === "refuse") fail("EINVAL");
    const root = lookUp(request, path, ALLOW_WRITE);
    for (const name of root.children.keys()) removeSubtree(request, `/${name}`);
    return OK;
  }
  const found = work.tree.nearest(path);
  touch(request, path, found.path);
  touch(request, parentPath(path), found.path);
  if (!allows(domain, found.node.permissions, ALLOW_WRITE)) fail("EACCES");
  if (found.path === path) removeSubtree(request, path);
  else if (found.path !== parentPath(path)) fail("ENOENT");
  return OK;
}

export function getPermissions(request: Request): Uint8Array {
  const [text] = strings(request, 1) as [string];
  const path = watchablePath(request, text);
  return encodeStrings(...permissionsFor(request, path, ALLOW_READ).map(formatPermission));
}

export function setPermissions(request: Request): Uint8Array {
  const { server, domain, work } = request;
  const [text, ...texts] = strings(request, 2, Infinity) as [string, ...string[]];
  const path = watchablePath(request, text);
  const wanted = texts.map((each) => parsePermission(each) ?? fail("EINVAL"));
  enforce(server.personality, domain.quotas, "permissions", wanted.length);
  const old = permissionsFor(request, path, ALLOW_WRITE | ALLOW_OWNER);
  if (!domain.privileged && wanted[0]?.domid !== old[0]?.domid) fail("EPERM");
  const permissions = onlyKnown(request, wanted);
  if (isSpecialPath(path)) {
    server.setSpecialPermissions(path, permissions);
    return OK;
  }
  work.tree.setPermissions(path, permissions);
  work.footprint?.modify(path);
  work.note({ path, oldPermissions: old, removed: undefined });
  return OK;
}

/**
 * The node at `path`, if the client may do `wanted`. A client that lacks that right even on the nearest existing
 * ancestor gets EACCES, whether the node exists or not.
 */
function lookUp(request: Request, path: string, wanted: number): StoreNode {
  const found = request.work.tree.nearest(path);
  touch(request, path, found.path);
  if (!allows(request.domain, found.node.permissions, wanted)) fail("EACCES");
  return found.path === path ? found.node : fail("ENOENT");
}

/**
 * Records that the reply depends on the node at `path`, or on its absence. In oxenstored the reply also depends on
 * `found`, the nearest existing node; C xenstored does not check whether that one has changed.
 */
function touch({ work, server }: Request, path: string, found: string): void {
  work.footprint?.touch(path);
  if (found !== path && server.personality.conflicts === "replay") work.footprint?.touch(found);
}

function permissionsFor(request: Request, path: string, wanted: number): Permissions {
  if (!isSpecialPath(path)) return lookUp(request, path, wanted).permissions;
  const permissions = request.server.specialPermissions(path);
  return allows(request.domain, permissions, wanted) ? permissions : fail("EACCES");
}

/**
 * Ensures that there is a writable node at `path` whose value may become `value`, creating it and its parents if
 * necessary. Returns the node as it was, or undefined if it is new.
 */
function prepare(request: Request, path: string, value: Uint8Array | undefined): StoreNode | undefined {
  const { work, domain, server } = request;
  const { path: reached, node } = work.tree.nearest(path);
  touch(request, path, reached);
  if (!allows(domain, node.permissions, ALLOW_WRITE)) fail("EACCES");
  if (reached === path) {
    if (value !== undefined) checkSize(request, node, value.length - node.value.length);
    return node;
  }
  const missing = nodeNames(path).slice(nodeNames(reached).length);
  const permissions = inherit(domain, node.permissions);
  checkSize(request, node, (missing[0]?.length ?? 0) + 1);
  checkSize(request, { permissions, childNameBytes: 0 }, value?.length ?? 0);
  if (permissions[0]?.domid === domain.domid)
    enforce(server.personality, domain.quotas, "nodes", work.tree.ownedBy(domain.domid) + missing.length);
  work.footprint?.touchDown(reached, path);
  work.tree.create(path, permissions);
  work.footprint?.modifyDown(reached, path);
  return undefined;
}

/** Checks that the node may grow by `growth` bytes. */
function checkSize(
  request: Request,
  node: Pick<StoreNode, "permissions" | "childNameBytes"> & { readonly value?: Uint8Array },
  growth: number,
): void {
  const { personality } = request.server;
  const names = NODE_HEADER_BYTES + node.permissions.length * PERMISSION_BYTES + node.childNameBytes;
  const size = (node.value?.length ?? 0) + growth + (personality.countsWholeNode ? names : 0);
  enforce(personality, request.domain.quotas, "nodeBytes", size);
}

function removeSubtree(request: Request, path: string): void {
  const { work } = request;
  const node = work.tree.get(path) as StoreNode;
  work.footprint?.touchTree(path, node);
  const removed = work.tree.remove(path);
  work.footprint?.modifyTree(path, removed);
  work.note({ path, oldPermissions: removed.permissions, removed });
}

/** Drops entries for domains that do not exist, if the server checks that. The owner must exist. */
function onlyKnown(request: Request, permissions: Permissions): Permissions {
  const { server } = request;
  if (!server.personality.checksDomains) return permissions;
  if (!server.domainExists(permissions[0]?.domid ?? 0)) fail("ENOENT");
  return permissions.filter(({ domid }) => server.domainExists(domid));
}
