// The resources in use in a simulated host, as the shim lists them: for `sim status`, and for tests to check that
// nothing was left behind.
import {
  XT_SIM_GRANT,
  XT_SIM_HANDLE,
  XT_SIM_ITEM,
  XT_SIM_MAP,
  XT_SIM_ORPHAN,
  XT_SIM_PORT,
  XT_SIM_RESERVED_GREFS,
  XT_SIM_SLOT,
} from "../native/abi.ts";
import { check, shim, type Pointer } from "../native/shim.ts";
import { counted } from "../core/counted.ts";

export type UsageKind = "process" | "grant" | "orphan" | "map" | "port" | "handle";
const KINDS: ReadonlyMap<number, UsageKind> = new Map([
  [XT_SIM_SLOT, "process"],
  [XT_SIM_GRANT, "grant"],
  [XT_SIM_ORPHAN, "orphan"],
  [XT_SIM_MAP, "map"],
  [XT_SIM_PORT, "port"],
  [XT_SIM_HANDLE, "handle"],
]);

export interface UsageItem {
  readonly kind: UsageKind;
  /** The owning domain; for a map, the domain that owns the page. */
  readonly domid: number;
  /** Slot of a process; reference of a grant, an orphan or a map; port; handle. */
  readonly id: number;
  /** The domain that a grant is for, that maps, or that a port leads to. */
  readonly peer: number;
  /** Pins of a grant; 1 for a writable map; the remote port, 0 if unbound; generation of a process. */
  readonly count: number;
  /** Slot of the owning process; 0 for what belongs to the domain itself. */
  readonly slot: number;
  readonly pid: number;
}

/** Kinds that occur in hundreds, with consecutive references. */
const RANGED: ReadonlySet<UsageKind> = new Set(["grant", "orphan", "map"]);

/** Everything in use in the host that `sim` is attached to. */
export function listUsage(sim: Pointer): UsageItem[] {
  for (let capacity = 256; ; capacity *= 2) {
    const words = new Uint32Array((capacity * XT_SIM_ITEM.bytes) / 4);
    const count = check(shim.xt_sim_list(sim, words, capacity), "list what is in use");
    if (count <= capacity) return Array.from({ length: count }, (_, index) => itemAt(words, index));
  }
}

function itemAt(words: Uint32Array, index: number): UsageItem {
  const field = (offset: number): number => words[(index * XT_SIM_ITEM.bytes + offset) / 4];
  return {
    kind: KINDS.get(field(XT_SIM_ITEM.kind)) as UsageKind,
    domid: field(XT_SIM_ITEM.domid),
    id: field(XT_SIM_ITEM.id),
    peer: field(XT_SIM_ITEM.peer),
    count: field(XT_SIM_ITEM.count),
    slot: field(XT_SIM_ITEM.slot),
    pid: field(XT_SIM_ITEM.pid),
  };
}

/** Whether a process, or memory it left behind, is the cause; false for a domain's own page and port. */
export function isHeld(item: UsageItem): boolean {
  if (item.slot !== 0) return true;
  return (
    item.kind === "orphan" ||
    item.kind === "map" ||
    (item.kind === "grant" && item.id >= XT_SIM_RESERVED_GREFS)
  );
}

/** One line for people. */
export function describeUsage(item: UsageItem): string {
  return describeRange(item, item.id, item.id);
}

/** Lines for people, like describeUsage, but with one line for each range of grants that are otherwise alike. */
export function describeUsages(items: readonly UsageItem[]): string[] {
  const alike = Map.groupBy(items, ({ id, ...rest }) =>
    JSON.stringify(RANGED.has(rest.kind) ? rest : { ...rest, id }),
  );
  return [...alike.values()].flatMap((group) =>
    rangesOf(group.map(({ id }) => id)).map(([first, last]) => describeRange(group[0], first, last)),
  );
}

/** Numbers in any order as ranges without gaps; duplicates are kept. */
function rangesOf(numbers: readonly number[]): [first: number, last: number][] {
  const ranges: [number, number][] = [];
  for (const number of numbers.toSorted((a, b) => a - b)) {
    const range = ranges.at(-1);
    if (range !== undefined && number === range[1] + 1) range[1] = number;
    else ranges.push([number, number]);
  }
  return ranges;
}

function describeRange(item: UsageItem, first: number, last: number): string {
  const { domid, id, peer, count, pid } = item;
  const grants = first === last ? `grant ${first}` : `grants ${first}-${last}`;
  switch (item.kind) {
    case "process":
      return `process ${pid} is attached as domain ${domid} (slot ${id})`;
    case "grant":
      return `${grants} of domain ${domid} for domain ${peer}, ${counted(count, "pin")}, by process ${pid}`;
    case "orphan":
      return `${grants} of domain ${domid} for domain ${peer}, given up but mapped ${counted(count, "time")}`;
    case "map":
      return `${grants} of domain ${domid} mapped ${count === 1 ? "rw" : "r"} by domain ${peer}, process ${pid}`;
    case "port":
      return count === 0
        ? `port ${id} of domain ${domid} waits for domain ${peer}, by process ${pid}`
        : `port ${id} of domain ${domid} to port ${count} of domain ${peer}, by process ${pid}`;
    case "handle":
      return `event-channel handle ${id} of domain ${domid}, by process ${pid}`;
  }
}
