// The nodes that a toolstack makes before a domain runs, with libxl's permissions: the domain reads its
// directory, and owns only the parts that are for it to write.
import { encodeText, joinPath, type XsPermission } from "../../protocol/xs-wire.ts";
import type { StoreTree } from "./store.ts";

/** Directories in a domain's own that the domain reads. */
const READ_ONLY = ["device", "control", "memory", "cpu", "console", "store"];
/** Directories and nodes that the domain owns. */
const OWN = ["data", "drivers", "feature", "attr", "error", "control/shutdown", "control/sysrq"];

const DOM0_ONLY: readonly XsPermission[] = [{ domid: 0, access: "none" }];

/** Makes the nodes that a xenstore server has from its start. */
export function seedServer(tree: StoreTree): void {
  for (const path of ["/tool", "/tool/xenstored", "/local", "/local/domain", "/vm", "/libxl"])
    put(tree, path, DOM0_ONLY);
}

/** Makes the directory of a domain, and returns the paths it made. A node that is there keeps its value. */
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

/** Undefined when there was a node already. */
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
