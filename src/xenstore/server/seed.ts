// The nodes that a toolstack creates before a domain runs, with libxl's permissions: the domain may read its directory
// and owns only the parts that it should write.
import { encodeText, joinPath, type XsPermission } from "../../protocol/xs-wire.ts";
import type { StoreTree } from "./store.ts";

/** Directories within a domain's own that it may only read. */
const READ_ONLY = ["device", "control", "memory", "cpu", "console", "store"];
/** Directories and nodes that the domain owns. */
const OWN = ["data", "drivers", "feature", "attr", "error", "control/shutdown", "control/sysrq"];

const DOM0_ONLY: readonly XsPermission[] = [{ domid: 0, access: "none" }];

/** Creates the nodes that a xenstore server has from the start. */
export function seedServer(tree: StoreTree): void {
  for (const path of ["/tool", "/tool/xenstored", "/local", "/local/domain", "/vm", "/libxl"])
    put(tree, path, DOM0_ONLY);
}

/** Creates a domain's directory and returns the paths it created. Existing nodes keep their values. */
export function seedDomain(tree: StoreTree, domid: number, name: string): string[] {
  const readable: readonly XsPermission[] = [...DOM0_ONLY, { domid, access: "read" }];
  const own: readonly XsPermission[] = [{ domid, access: "none" }];
  const directory = `/local/domain/${domid}`;
  const made = [
    put(tree, directory, readable),
    put(tree, joinPath(directory, "name"), readable, name),
    put(tree, joinPath(directory, "domid"), readable, String(domid)),
    ...READ_ONLY.map((path) => put(tree, joinPath(directory, path), readable)),
    ...OWN.map((path) => put(tree, joinPath(directory, path), own)),
  ];
  return made.filter((path) => path !== undefined);
}

/** Returns undefined if the node already existed. */
function put(
  tree: StoreTree,
  path: string,
  permissions: readonly XsPermission[],
  value = "",
): string | undefined {
  if (tree.get(path) !== undefined) return undefined;
  tree.create(path, permissions);
  tree.setValue(path, encodeText(value));
  return path;
}
