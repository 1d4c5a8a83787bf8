// A hash for each path, computed from its parent's hash and its name. The hashes of all nodes above or below a node
// therefore cost no more than reading the names once. Equal paths have equal hashes; different paths may collide.

/** The hash of "/" and of the empty path. 32-bit FNV-1a. */
export const ROOT_HASH = 0x811c_9dc5;
const SLASH = 0x2f;

function addByte(hash: number, byte: number): number {
  return Math.imul(hash ^ byte, 0x0100_0193);
}

/** The hash of `name` below the path whose hash is `parent`. */
export function hashBelow(parent: number, name: string): number {
  let hash = addByte(parent, SLASH);
  for (let at = 0; at < name.length; at++) hash = addByte(hash, name.charCodeAt(at));
  return hash;
}

/** The hashes of "/", of each node above `path`, and of `path` itself, each with the length of its path. */
export function* hashesDownTo(path: string): Generator<readonly [hash: number, length: number]> {
  yield [ROOT_HASH, 1];
  if (path === "/") return;
  let hash = ROOT_HASH;
  for (let at = 0; at < path.length; at++) {
    const byte = path.charCodeAt(at);
    if (byte === SLASH && at > 0) yield [hash, at];
    hash = addByte(hash, byte);
  }
  yield [hash, path.length];
}
