// The requests on nodes: read, list, write, make, remove, permissions. Each works on the workspace of its
// transaction or of the moment, checks everything before it changes anything, and notes what it changed.
import {
  encodeStrings,
  formatPermission,
  isSpecialPath,
  parentPath,
  parsePermission,
  XS_PAYLOAD_MAX,
} from "../../protocol/xs-wire.ts";
import { ALLOW_OWNER, ALLOW_READ, ALLOW_WRITE, allows, inherit, type Permissions } from "./permissions.ts";
import { enforce } from "./quota.ts";
import { fail, nodePath, number, OK, splitFirst, strings, watchablePath, type Request } from "./request.ts";
import { descendants, pathsBetween, type StoreNode } from "./store.ts";

/** Bytes of a node's own bookkeeping, and of each permission, where they count towards its size. */
const NODE_HEADER_BYTES = 20;
const PERMISSION_BYTES = 4;

export function read(request: Request): Uint8Array {
  const [text] = strings(request, 1) as [string];
  return lookUp(request, nodePath(request, text), ALLOW_READ).value;
}

export function directory(request: Request): Uint8Array {
  const [text] = strings(request, 1) as [string];
  return encodeStrings(...lookUp(request, nodePath(request, text), ALLOW_READ).children.keys());
}

/** `<generation>\0<names…>`: whole names from the offset on, and one more NUL after the very last. */
export function directoryPart(request: Request): Uint8Array {
  const { directoryPart: allowed } = request.server.personality;
  if (allowed === "nobody") fail("ENOSYS");
  if (allowed === "dom0" && !request.domain.privileged) fail("EACCES");
  const [text, offsetText] = strings(request, 2) as [string, string];
  const offset = number(offsetText);
  const node = lookUp(request, nodePath(request, text), ALLOW_READ);
  const generation = encodeStrings(String(node.generation));
  const rest = encodeStrings(...node.children.keys()).subarray(Math.min(offset, node.childNameBytes));
  const room = XS_PAYLOAD_MAX - generation.length - 1;
  const last = rest.length <= room;
  const names = last ? rest : rest.subarray(0, rest.lastIndexOf(0, room - 1) + 1);
  const reply = new Uint8Array(generation.length + names.length + (last ? 1 : 0));
  reply.set(generation);
  reply.set(names, generation.length);
  return reply;
}

export function write(request: Request): Uint8Array {
  const { first, rest: value } = splitFirst(request.packet.payload);
  const path = nodePath(request, first);
  const old = prepare(request, path, value);
  request.work.tree.setValue(path, value);
  request.work.modify(path);
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
  work.touch(path);
  work.touch(parentPath(path));
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
  work.modify(path);
  work.note({ path, oldPermissions: old, removed: undefined });
  return OK;
}

/**
 * The node at `path`, for one who may do `wanted`. Who may not even do that with the nearest node above is
 * told EACCES, whether the node exists or not.
 */
function lookUp(request: Request, path: string, wanted: number): StoreNode {
  const found = request.work.tree.nearest(path);
  request.work.touch(path);
  if (!allows(request.domain, found.node.permissions, wanted)) fail("EACCES");
  return found.path === path ? found.node : fail("ENOENT");
}

function permissionsFor(request: Request, path: string, wanted: number): Permissions {
  if (!isSpecialPath(path)) return lookUp(request, path, wanted).permissions;
  const permissions = request.server.specialPermissions(path);
  return allows(request.domain, permissions, wanted) ? permissions : fail("EACCES");
}

/**
 * Makes sure that there is a node at `path` that may be written and whose value may become `value`; makes
 * it and its parents if need be. Gives the node as it was, undefined when it is new.
 */
function prepare(request: Request, path: string, value: Uint8Array | undefined): StoreNode | undefined {
  const { work, domain, server } = request;
  const { path: reached, node } = work.tree.nearest(path);
  work.touch(path);
  if (!allows(domain, node.permissions, ALLOW_WRITE)) fail("EACCES");
  if (reached === path) {
    if (value !== undefined) checkSize(request, node, value.length - node.value.length);
    return node;
  }
  const missing = pathsBetween(reached, path);
  const permissions = inherit(domain, node.permissions);
  checkSize(request, node, (missing[0] as string).length - reached.length);
  checkSize(request, { permissions, childNameBytes: 0 }, value?.length ?? 0);
  if (permissions[0]?.domid === domain.domid)
    enforce(server.personality, domain.quotas, "nodes", work.tree.ownedBy(domain.domid) + missing.length);
  work.touch(reached);
  for (const each of missing) work.touch(each);
  for (const each of missing) {
    work.tree.create(each, permissions);
    work.modify(each);
  }
  return undefined;
}

/** Whether the node may become `growth` bytes larger than it is. */
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
  const paths = [...descendants(path, node)].map(([each]) => each);
  for (const each of paths) work.touch(each);
  const removed = work.tree.remove(path);
  for (const each of paths) work.modify(each);
  work.note({ path, oldPermissions: removed.permissions, removed });
}

/** Without the domains that do not exist, where the server looks. An owner has to exist. */
function onlyKnown(request: Request, permissions: Permissions): Permissions {
  const { server } = request;
  if (!server.personality.checksDomains) return permissions;
  if (!server.domainExists(permissions[0]?.domid ?? 0)) fail("ENOENT");
  return permissions.filter(({ domid }) => server.domainExists(domid));
}
