// Our libraries behind Xen's names are what Debian's headers and libraries say, in every function, and programs find
// them.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { executable } from "../e2e/executable.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { compileVchanPeer, ProgramHost, succeeds } from "./program-host.ts";

const root = join(import.meta.dir, "../..");
const LIBRARIES = ["call", "devicemodel", "evtchn", "foreignmemory", "gnttab"];

let scratch: string;
let peer: string;
beforeAll(async () => {
  scratch = temporaryDirectory();
  peer = join(scratch, "vchan-peer");
  await compileVchanPeer(peer);
});
afterAll(() => removeDirectory(scratch));

/** What a command says; it must succeed. */
function ran(command: readonly string[]): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command]);
  expect([exitCode, stderr.toString()]).toEqual([0, ""]);
  return stdout.toString();
}

test("the names are declared as Debian's headers declare them", () => {
  const headers = LIBRARIES.map((name) => `#include <xen${name}.h>`).join("\n");
  const source = join(scratch, "names.c");
  writeFileSync(
    source,
    `${headers}
#include "programs/names.h"
#include "xen/xen.h"
typedef xengnttab_grant_copy_segment_t theirs;
typedef struct xt_copy_segment ours;
_Static_assert(sizeof(theirs) == sizeof(ours), "size");
_Static_assert(offsetof(theirs, dest) == offsetof(ours, dest), "dest");
_Static_assert(offsetof(theirs, source.foreign.domid) == offsetof(ours, source.foreign.domid), "domid");
_Static_assert(offsetof(theirs, len) == offsetof(ours, length), "length");
_Static_assert(offsetof(theirs, flags) == offsetof(ours, flags), "flags");
_Static_assert(offsetof(theirs, status) == offsetof(ours, status), "status");
_Static_assert(XENEVTCHN_NO_CLOEXEC == 1, "flag");
`,
  );
  ran(["cc", "-std=c11", "-Wall", "-Werror", "-fsyntax-only", `-I${root}/csrc`, source]);
});

/** The symbols that a file defines, or those that it takes from others, with their versions. */
function symbolsOf(path: string, taken = false): string[] {
  const lines = ran(["objdump", "-T", path]).split("\n");
  return lines.flatMap((line) => {
    const found = line.includes("*UND*") !== taken ? null : /\(?(VERS_[\d.]+)\)?\s+(xen\w+)$/.exec(line);
    return found === null ? [] : [`${found[2]}@${found[1]}`];
  });
}

test("every symbol of Debian's libraries is there, in its version, and no other", () => {
  const theirs = LIBRARIES.flatMap((name) =>
    symbolsOf(`/usr/lib/${process.arch === "arm64" ? "aarch64" : "x86_64"}-linux-gnu/libxen${name}.so.1`),
  );
  expect(theirs.length).toBeGreaterThan(70);
  expect(symbolsOf(join(root, "build/shim/libxentool_programs.so")).toSorted()).toEqual(theirs.toSorted());
});

test("a program that calls all of it, by many threads and in a child of a fork", async () => {
  const calls = join(scratch, "xen_calls");
  const libraries = ["ctrl", ...LIBRARIES].map((name) => `-lxen${name}`);
  const source = join(import.meta.dir, "xen_calls.c");
  ran(["cc", "-std=gnu11", "-Wall", "-Werror", "-o", calls, source, "-pthread", ...libraries]);
  const ours = symbolsOf(join(root, "build/shim/libxentool_programs.so"));
  expect(ours.filter((symbol) => !symbolsOf(calls, true).includes(symbol))).toEqual([]);
  const host = await ProgramHost.start();
  await succeeds(host.program(0, calls));
  await host.close();
});

test("where the host's directory may hold no programs, they lie elsewhere, and go with the host", () => {
  const temporary = join(scratch, "tmp");
  mkdirSync(temporary);
  const script = `mount -t tmpfs -o noexec none /dev/shm && exec "$0" sim run -- sh -c 'readlink "$XENTOOL_SIM/lib" && "$peer" server 0 data/x 99999999 1 hold'`;
  const asRoot = process.getuid?.() === 0 ? [] : ["--user", "--map-root-user"];
  const { stdout, stderr, exitCode } = Bun.spawnSync(
    ["unshare", ...asRoot, "--mount", "sh", "-c", script, executable],
    { env: { PATH: process.env["PATH"] ?? "", peer, TMPDIR: temporary } },
  );
  expect(stdout.toString()).toStartWith(join(temporary, "xentool-sim-lib-"));
  expect(stderr.toString()).not.toContain("shared object");
  expect(exitCode).toBe(1); // the rings are too big: it came as far as asking for them
  expect(readdirSync(temporary)).toEqual([]);
});

test("the version script has later nodes for later programs", () => {
  const script = readFileSync(join(root, "csrc/programs/versions.map"), "utf8");
  expect([...script.matchAll(/^VERS_1\.(\d) \{/gm)].map(([, node]) => node)).toEqual([..."0123456789"]);
});
