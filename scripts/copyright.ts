// The copyright file of packages and archives: ours, that of each npm package in the executable, and that of Bun.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { root } from "./lib.ts";

interface Manifest {
  readonly name: string;
  readonly license: string;
  readonly dependencies?: Readonly<Record<string, string>>;
}

function manifestOf(directory: string): Manifest {
  return JSON.parse(readFileSync(join(root, directory, "package.json"), "utf8"));
}

/** The names of the npm packages that the executable holds. */
function bundled(directory = ".", seen = new Set<string>()): Set<string> {
  for (const name of Object.keys(manifestOf(directory).dependencies ?? {})) {
    if (seen.has(name)) continue;
    seen.add(name);
    bundled(`node_modules/${name}`, seen);
  }
  return seen;
}

/** A text as the continuation of a field: each line indented, empty ones as dots. */
function indent(text: string): string {
  return text
    .trim()
    .split("\n")
    .map((line) => (line.trim() === "" ? " ." : ` ${line.trimEnd()}`))
    .join("\n");
}

function licenseOf(directory: string): { holders: string; text: string } {
  const file = readdirSync(join(root, directory)).find((name) => /^licen[cs]e/i.test(name));
  if (file === undefined) throw new Error(`${directory} has no licence`);
  const text = readFileSync(join(root, directory, file), "utf8");
  const holders = [...text.matchAll(/^ *(?:Copyright )?(?:\(c\)|©|Copyright) .*$/gim)].map(([line]) =>
    line.trim(),
  );
  return { holders: holders.join("\n") || "its authors", text };
}

const BUN = `Files: usr/bin/xentool
Copyright: 2021-2026 Oven and the contributors of Bun
License: MIT and LGPL-2+
Comment: The executable holds Bun's run time (https://github.com/oven-sh/bun), unchanged but for its symbols. Bun is
 under the MIT license. It links JavaScriptCore and other parts of WebKit statically, which are under LGPL-2 or BSD
 licenses; the sources that they are rebuilt from are at https://github.com/oven-sh/WebKit. On Debian, the LGPL is in
 /usr/share/common-licenses/LGPL-2. Bun's LICENSE.md lists what else it links, with their licenses.
`;

/** In Debian's machine-readable format. */
export function copyright(): string {
  const parts = [...bundled()].toSorted().map((name) => {
    const directory = `node_modules/${name}`;
    const { license } = manifestOf(directory);
    const { holders, text } = licenseOf(directory);
    return `Files: node_modules/${name}/*
Copyright: ${holders.replaceAll("\n", "\n ")}
License: ${license}-${name.replace("@", "").replace("/", "-")}
${indent(text)}
`;
  });
  const ours = licenseOf(".");
  return [
    `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: xentool
Comment: The npm packages named here are compiled into usr/bin/xentool.
`,
    `Files: *
Copyright: ${ours.holders.replaceAll("\n", "\n ")}
License: ISC
${indent(ours.text)}
`,
    BUN,
    ...parts,
  ].join("\n");
}
