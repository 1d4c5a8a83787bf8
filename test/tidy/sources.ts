// The project's own files and what they import, for the tests of the house rules.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";

export const root = resolve(import.meta.dirname, "../..");

const FOLDERS = ["src", "cmd", "csrc", "test", "bench", "scripts", "docs"];

export interface SourceFile {
  /** Relative to the project's root, with slashes. */
  readonly path: string;
  readonly text: string;
  readonly lines: readonly string[];
}

export interface Import {
  /** A file relative to the project's root, or a package's name as written. */
  readonly target: string;
  /** `import type`: gone when compiled. */
  readonly typeOnly: boolean;
  /** `import("…")`: loaded when execution comes there. */
  readonly dynamic: boolean;
}

/** Every file of the project's folders whose name matches. */
export function filesLike(pattern: RegExp): SourceFile[] {
  return FOLDERS.filter((folder) => existsSync(join(root, folder)))
    .flatMap((folder) =>
      readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
        .map((name) => `${folder}/${name}`)
        .filter((path) => pattern.test(path)),
    )
    .toSorted((a, b) => a.localeCompare(b))
    .map(readSource);
}

/** The file at `path`, relative to the project's root. */
export function readSource(path: string): SourceFile {
  const text = readFileSync(join(root, path), "utf8");
  return { path, text, lines: text.replace(/\n$/, "").split("\n") };
}

const STATIC_IMPORT = /^(?:import|export)\s+(type\s)?(?:[\w*{][^;"]*?\sfrom\s+)?"([^"]+)"/gm;
const DYNAMIC_IMPORT = /\bimport\(\s*"([^"]+)"\s*\)/g;
const WORKER_FILE = /new URL\("([^"]+\.ts)", import\.meta\.url\)/g;

/** Everything that TypeScript `file` imports, `import type` and the entry points of workers included. */
export function importsOf(file: SourceFile): Import[] {
  const resolved = (name: string): string =>
    name.startsWith(".") ? join(dirname(file.path), name).replaceAll("\\", "/") : name;
  const dynamic = [DYNAMIC_IMPORT, WORKER_FILE].flatMap((pattern) => [...file.text.matchAll(pattern)]);
  return [
    ...[...file.text.matchAll(STATIC_IMPORT)].map(([, type, name]) => ({
      target: resolved(String(name)),
      typeOnly: type !== undefined,
      dynamic: false,
    })),
    ...dynamic.map(([, name]) => ({ target: resolved(String(name)), typeOnly: false, dynamic: true })),
  ];
}

/** The project's files that are loaded with `entry`; with `lazy` also those that are loaded later. */
export function reachableFrom(entry: string, lazy: boolean): Set<string> {
  const reached = new Set<string>();
  const waiting = [entry];
  for (let path = waiting.pop(); path !== undefined; path = waiting.pop()) {
    if (reached.has(path)) continue;
    reached.add(path);
    for (const { target, typeOnly, dynamic } of importsOf(readSource(path)))
      if (!typeOnly && (lazy || !dynamic) && /^(src|cmd)\/.*\.ts$/.test(target)) waiting.push(target);
  }
  return reached;
}
