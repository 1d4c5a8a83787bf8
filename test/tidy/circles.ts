// Circles in a graph of files: those that can only be read together, because each needs all the others.

/** What each file imports. Files that are no keys import nothing. */
export type Imports = ReadonlyMap<string, readonly string[]>;

/** A shortest circle through each file that is in one, as "a -> b -> a"; each circle once. */
export function circlesOf(imports: Imports): string[] {
  const circles = new Set<string>();
  for (const start of imports.keys()) {
    const circle = shortestCircle(imports, start);
    if (circle !== undefined) circles.add(fromTheFirst(circle).join(" -> "));
  }
  return [...circles];
}

function shortestCircle(imports: Imports, start: string): string[] | undefined {
  const cameFrom = new Map<string, string>();
  const waiting = [start];
  for (const file of waiting)
    for (const target of imports.get(file) ?? []) {
      if (target === start) return pathTo(file, start, cameFrom);
      if (cameFrom.has(target)) continue;
      cameFrom.set(target, file);
      waiting.push(target);
    }
  return undefined;
}

function pathTo(end: string, start: string, cameFrom: ReadonlyMap<string, string>): string[] {
  const path: string[] = [];
  for (let at: string | undefined = end; at !== undefined && at !== start; at = cameFrom.get(at))
    path.unshift(at);
  return [start, ...path];
}

/** The same circle, begun at the file whose name comes first, and closed. */
function fromTheFirst(circle: readonly string[]): string[] {
  const first = circle.indexOf([...circle].sort()[0] ?? "");
  const turned = [...circle.slice(first), ...circle.slice(0, first)];
  return [...turned, ...turned.slice(0, 1)];
}
