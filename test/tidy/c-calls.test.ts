// Calls between the files of csrc go one way: no file calls another that calls it, directly or by way of others.
import { expect, test } from "bun:test";
import { filesLike } from "./sources.ts";

const DEFINITION =
  /^(?!static|typedef|struct \w+ \{|union|enum)[a-z][\w ]*?[ *](\w+)\([^;{}()]*(?:\([^()]*\)[^;{}()]*)*\)\s*\{/gm;

const files = filesLike(/^csrc\/.*\.c$/).map(({ path, text }) => ({
  path,
  code: text.replaceAll(/\/\*[^]*?\*\//g, ""),
}));
const home = new Map(
  files.flatMap(({ path, code }) => [...code.matchAll(DEFINITION)].map(([, name]) => [String(name), path])),
);

/** The files whose functions a file calls. */
const calls = new Map(
  files.map(({ path, code }) => {
    const names = new Set([...code.matchAll(/\b(\w+)\b/g)].map(([name]) => name));
    const callees = [...names].map((name) => home.get(name)).filter((callee) => callee !== undefined);
    return [path, new Set(callees.filter((callee) => callee !== path))];
  }),
);

/** A way from `path` back to it, or undefined. */
function circleOf(
  path: string,
  way: readonly string[] = [path],
  seen = new Set<string>(),
): string | undefined {
  for (const callee of calls.get(way.at(-1) as string) ?? []) {
    if (callee === path) return [...way, callee].join(" -> ");
    if (seen.has(callee)) continue;
    seen.add(callee);
    const found = circleOf(path, [...way, callee], seen);
    if (found !== undefined) return found;
  }
  return undefined;
}

test("definitions and calls are found", () => {
  expect(home.get("xt_evtchn_notify")).toBe("csrc/xen/xen.c");
  expect(home.get("sim_domain_get")).toBe("csrc/xen/sim_attach.c");
  expect([...(calls.get("csrc/xen/sim_grant.c") ?? [])]).toContain("csrc/xen/sim_evtchn.c");
  expect([...(calls.get("csrc/reactor.c") ?? [])]).toContain("csrc/reactor_uring.c");
});

test("and go one way", () => {
  expect(files.map(({ path }) => circleOf(path)).filter((circle) => circle !== undefined)).toEqual([]);
});
