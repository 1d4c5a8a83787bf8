// A number for each path, made from its parent's number and its name. So the numbers of all nodes above a node, or of
// all nodes below it, cost no more than reading the names once. Equal paths have equal numbers; different paths may
// have equal numbers, too.

/** The number of "/", and of the path that is empty. FNV-1a, of 32 bits. */
export const ROOT_HASH = 0x811c_9dc5;
const SLASH = 0x2f;

function addByte(hash: number, byte: number): number {
  return Math.imul(hash ^ byte, 0x0100_0193);
}

/** The number of `name` below the path whose number is `parent`. */
export function hashBelow(parent: number, name: string): number {
  let hash = addByte(parent, SLASH);
  for (let at = 0; at < name.length; at++) hash = addByte(hash, name.charCodeAt(at));
  return hash;
}

/** The numbers of "/", of each node above `path` and of `path` itself, with the length that each path has. */
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
