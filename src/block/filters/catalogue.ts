// The available filters, by name. Parses `--filter`, and puts filters around a target.
import type { OnEnd } from "../../native/reactor.ts";
import type { BlockTarget, OpenTarget } from "../target.ts";
import { assertFilter } from "./assert.ts";
import { delayFilter } from "./delay.ts";
import { errorFilter } from "./error.ts";
import { FilterOptions, type FilterContext, type FilterKind } from "./filter.ts";
import { logFilter } from "./log.ts";

const FILTERS = new Map([
  ["assert", entry(assertFilter)],
  ["delay", entry(delayFilter)],
  ["error", entry(errorFilter)],
  ["log", entry(logFilter)],
]);

/** Opens a filter whose options have been parsed. */
type OpenFilter = (openInner: OpenTarget, onEnd: OnEnd, context: FilterContext) => BlockTarget;

interface Entry {
  readonly help: string;
  readonly grammar: string;
  readonly prepare: (options: FilterOptions) => OpenFilter;
}

function entry<Options>(kind: FilterKind<Options>): Entry {
  const prepare = (text: FilterOptions): OpenFilter => {
    const options = kind.parse(text);
    return (openInner, onEnd, context) => kind.open(options, openInner, onEnd, context);
  };
  return { help: kind.help, grammar: kind.grammar, prepare };
}

/**
 * Parses an argument of `--filter`: `error:rate=1%,errno=EIO,op=write,seed=7`, `delay:ms=5,op=read`, `log:op=flush`.
 * Throws `usage`.
 */
export function parseFilter(text: string): OpenFilter {
  const colon = text.indexOf(":");
  const name = colon < 0 ? text : text.slice(0, colon);
  const options = new FilterOptions(text, colon < 0 ? undefined : text.slice(colon + 1));
  const filter = FILTERS.get(name);
  if (filter === undefined)
    throw options.error(`the filters are ${[...FILTERS.keys()].join(", ")}; --filter help describes them`);
  const open = filter.prepare(options);
  if (options.unknown !== undefined) throw options.error(`${name} has no "${options.unknown}"`);
  return open;
}

/**
 * Opens a target behind the filters in `filters`, which `parseFilter` has accepted. The first is nearest to the
 * guest.
 */
export function openFiltered(
  filters: readonly string[],
  openTarget: OpenTarget,
  onEnd: OnEnd,
  context: FilterContext,
): BlockTarget {
  const [first, ...rest] = filters;
  if (first === undefined) return openTarget(onEnd);
  const openInner: OpenTarget = (innerEnd) => openFiltered(rest, openTarget, innerEnd, context);
  return parseFilter(first)(openInner, onEnd, context);
}

/** The text that `--filter help` prints. */
export function filterHelp(): string {
  const lines = [...FILTERS.values()].map(({ grammar, help }) => `  ${grammar}\n      ${help}`);
  return `--filter puts a filter in front of the disk; the first one named is nearest to the guest.

${lines.join("\n")}

SHARE is 1% or 0.01. OPS is read, write, flush, discard, or several joined by +; without it, all of them.
`;
}
