// The house rules of docs/architecture.md that a program can check. A failure lists the files and lines.
import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { filesLike, importsOf, reachableFrom, readSource, root, type SourceFile } from "./sources.ts";

const FLOORS: Readonly<Record<string, number>> = {
  "src/core": 1,
  "src/native": 2,
  "src/protocol": 2,
  "src/platform": 3,
  "src/block": 3,
  "src/plane": 3,
  "src/xenstore": 4,
  "src/blkback": 5,
  "src/blkfront": 5,
  "src/vchan": 5,
  "src/xsring": 5,
  "src/sim": 5,
  "src/selftest": 6,
  cmd: 7,
};
const SHIM = "src/native/shim.ts";
const THIS_FILE = "test/tidy/house-rules.test.ts";
const LINES_MAX = 450;
/** The linter counts those of TypeScript. */
const C_FUNCTION_LINES_MAX = 60;
/** The formatter breaks code at 110; this is for what it leaves alone. */
const COLUMNS_MAX = 120;

const XEN_LIBRARIES = "test/conformance/xen-libraries.ts";

const typescript = filesLike(/\.(ts|mjs)$/);
const c = filesLike(/\.[ch]$/);
const product = [...typescript, ...c].filter(({ path }) => /^(src|cmd|csrc)\//.test(path));
const everything = [
  ...filesLike(/\.(ts|mjs|c|h|sh|md|txt)$/),
  ...["README.md", "CHANGELOG.md", "CMakeLists.txt", "package.json", "bunfig.toml", ".ci/run"].map(
    readSource,
  ),
];

/** `src/sim` of src/sim/host.ts and src/xenstore of src/xenstore/server/store.ts; undefined outside the house. */
function floorName(path: string): string | undefined {
  return Object.keys(FLOORS).find((name) => path.startsWith(`${name}/`));
}

/** "FILE:LINE: TEXT" of each line that matches. */
function linesLike(files: readonly SourceFile[], pattern: RegExp): string[] {
  return files.flatMap(({ path, lines }) =>
    lines.flatMap((line, index) => (pattern.test(line) ? [`${path}:${index + 1}: ${line.trim()}`] : [])),
  );
}

describe("imports", () => {
  test("come only from floors below, or from the same folder", () => {
    const wrong = typescript.flatMap((file) => {
      const own = floorName(file.path);
      if (own === undefined) return [];
      return importsOf(file)
        .filter(({ target }) => /^(src|cmd|test|bench|scripts)\//.test(target))
        .filter(({ target }) => {
          const other = floorName(target);
          return other === undefined || (other !== own && Number(FLOORS[other]) >= Number(FLOORS[own]));
        })
        .map(({ target }) => `${file.path} imports ${target}`);
    });
    expect(wrong).toEqual([]);
  });

  test("every folder of src has its floor", () => {
    const homeless = typescript.filter(
      ({ path }) => path.startsWith("src/") && floorName(path) === undefined,
    );
    expect(homeless.map(({ path }) => path)).toEqual([]);
  });

  test("of bun:ffi are in the shim's file only, and where tests call Xen's libraries", () => {
    const wrong = typescript.filter(
      (file) =>
        ![SHIM, XEN_LIBRARIES].includes(file.path) &&
        importsOf(file).some(({ target }) => target === "bun:ffi"),
    );
    expect(wrong.map(({ path }) => path)).toEqual([]);
  });

  test("reach every file of src and cmd from the two entry points", () => {
    const reached = new Set([
      ...reachableFrom("cmd/xentool.ts", true),
      ...reachableFrom("cmd/worker.ts", true),
      ...typesReached(),
    ]);
    const dead = typescript.filter(({ path }) => /^(src|cmd)\//.test(path) && !reached.has(path));
    expect(dead.map(({ path }) => path).filter((path) => !path.endsWith(".d.ts"))).toEqual([]);
  });

  test("that come with the start load no shim and no logging", () => {
    const atStart = reachableFrom("cmd/command-line.ts", false);
    const heavy = [...atStart].filter((path) => path.startsWith("src/native/") || path === "src/core/log.ts");
    expect(heavy).toEqual([]);
  });
});

/** Files that hold only types are reached by `import type`. */
function typesReached(): string[] {
  return typescript
    .filter(({ path }) => /^(src|cmd)\//.test(path))
    .flatMap((file) => importsOf(file).filter(({ typeOnly }) => typeOnly))
    .map(({ target }) => target);
}

describe("files", () => {
  test("have names in kebab-case, C's in snake_case", () => {
    const wrong = [
      ...typescript.filter(({ path }) => !/\/[a-z0-9]+(-[a-z0-9]+)*(\.[a-z]+)?\.(ts|mjs)$/.test(path)),
      ...c.filter(({ path }) => !/\/[a-z0-9]+(_[a-z0-9]+)*\.[ch]$|\/[a-z0-9-]+\.[ch]$/.test(path)),
    ];
    expect(wrong.map(({ path }) => path)).toEqual([]);
  });

  test("open with a comment that says what they are", () => {
    const wrong = [
      ...typescript.filter(({ lines }) => !lines[0]?.startsWith("// ")),
      ...c.filter(({ lines }) => !lines[0]?.startsWith("/*")),
    ];
    expect(wrong.map(({ path }) => path)).toEqual([]);
  });

  test(`of the product have at most ${LINES_MAX} lines`, () => {
    const long = product.filter(({ lines }) => lines.length > LINES_MAX);
    expect(long.map(({ path, lines }) => `${path}: ${lines.length}`)).toEqual([]);
  });

  test(`in C have functions of at most ${C_FUNCTION_LINES_MAX} lines`, () => {
    const long = product.flatMap(({ path, lines }) => {
      if (!/\.[ch]$/.test(path)) return [];
      const begins = lines.flatMap((line, index) => (/^\w.*\)\s*\{$/.test(line) ? [index] : []));
      return begins.flatMap((begin) => {
        const length = lines.indexOf("}", begin) + 1 - begin;
        return length > C_FUNCTION_LINES_MAX ? [`${path}:${begin + 1}: ${length}`] : [];
      });
    });
    expect(long).toEqual([]);
  });

  test(`have lines of at most ${COLUMNS_MAX} columns, what is in quotes not counted`, () => {
    const long = linesLike([...typescript, ...c], new RegExp(`^.{${COLUMNS_MAX + 1}}`, "u")).filter(
      (line) => line.replace(/`[^`]*`|"[^"]*"/g, '""').length > COLUMNS_MAX,
    );
    expect(long).toEqual([]);
  });

  test("have no trailing space and end with a line end", () => {
    const unended = everything.filter(({ text }) => !text.endsWith("\n") || text.endsWith("\n\n"));
    expect([...linesLike(everything, /[ \t]$/), ...unended.map(({ path }) => path)]).toEqual([]);
  });
});

describe("nothing is left", () => {
  const others = everything.filter(({ path }) => path !== THIS_FILE);

  test("to be done later", () => {
    expect(linesLike(others, /\b(TODO|FIXME|XXX|HACK)\b/)).toEqual([]);
  });

  test("out of the tests", () => {
    const tests = others.filter(({ path }) => /^test\/.*\.ts$/.test(path));
    expect(linesLike(tests, /\b(test|it|describe)\.(only|skip|todo|failing|if|skipIf|todoIf)\b/)).toEqual([]);
    // A test for each program that happens to be installed is one that may be none.
    expect(linesLike(tests, /\bwhich\([^)]*\) *[!=]==? *null/)).toEqual([]);
  });

  test("to be done twice: test/support makes directories, seeds and random numbers", () => {
    const tests = others.filter(({ path }) => /^test\/(?!support\/|xen\/).*\.ts$/.test(path));
    expect(
      linesLike(tests, /\bmkdtempSync\(join\(tmpdir|\benv\["SEED"\]|\bMath\.random\b|\/proc\/self\/fd\b/),
    ).toEqual([]);
  });

  test("out of the checks", () => {
    const code = others.filter(({ path }) => /\.(ts|mjs|json)$/.test(path));
    expect(linesLike(code, /@ts-(ignore|nocheck|expect-error)|(ox|es)lint-disable/)).toEqual([]);
  });

  test("of the machine it was written on", () => {
    const paths = /(^|[\s"'`=:(])\/(work|root|home|Users)\/\w/;
    expect(linesLike(others, paths)).toEqual([]);
    const hosts = /\bregistry\.[a-z]|\bproxy\.|\blocalhost:\d|\b(10|192\.168)(\.\d{1,3}){2,3}\b/;
    expect(linesLike(others, hosts)).toEqual([]);
    const foreign = /"resolved": "(?!https:\/\/registry\.npmjs\.org\/)/;
    expect(linesLike([readSource("package-lock.json")], foreign)).toEqual([]);
  });

  test("that holds an address of memory that may move", () => {
    expect(
      linesLike(
        typescript.filter(({ path }) => path !== THIS_FILE),
        /(^|[^.\w])ptr\(/,
      ),
    ).toEqual([]);
  });
});

describe("documents", () => {
  test("link only to files that exist", () => {
    const broken = everything
      .filter(({ path }) => path.endsWith(".md"))
      .flatMap(({ path, text }) =>
        [...text.matchAll(/\]\((?!https?:|#)([^)#\s]+)/g)]
          .map(([, link]) => join(dirname(path), String(link)))
          .filter((target) => !existsSync(join(root, target)))
          .map((target) => `${path} links to ${target}`),
      );
    expect(broken).toEqual([]);
  });

  test("and comments name only files of ours that exist", () => {
    const ours = new Set(typescript.map(({ path }) => basename(path)));
    const files = [...product, ...everything.filter(({ path }) => path.endsWith(".md"))];
    const named = /(?<![\w*.-])[a-z][\w.-]*\.ts\b/g;
    const gone = files.flatMap(({ path, text }) =>
      [...text.matchAll(named)].filter(([name]) => !ours.has(name)).map(([name]) => `${path} names ${name}`),
    );
    expect(gone).toEqual([]);
  });

  test("show the first test as it is", () => {
    const textOf = (path: string): string => everything.find((file) => file.path === path)?.text ?? "";
    const shown = /```ts\n(.*?)```/s.exec(textOf("docs/testing.md"))?.[1];
    expect(shown).toBe(textOf("test/sim/first.test.ts"));
  });
});
