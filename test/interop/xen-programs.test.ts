// Unmodified programs on Xen's libraries, on a simulated host: ours behind their names are what Debian's headers and
// libraries say, and libxenvchan's own code understands `xentool vchan` on top of them.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { installLibraries, programEnvironment } from "../../src/sim/programs.ts";
import { SimHost } from "../../src/sim/host.ts";
import { executable } from "../e2e/executable.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const root = join(import.meta.dir, "../..");
const LIBRARIES = ["call", "devicemodel", "evtchn", "foreignmemory", "gnttab"];
const BYTES = 300_000;

let scratch: string;
let peer: string;
beforeAll(() => {
  scratch = temporaryDirectory();
  peer = join(scratch, "vchan-peer");
  const source = join(root, "test/xen/programs/vchan-peer.c");
  const libraries = ["xenvchan", "xengnttab", "xenevtchn", "xenstore", "xentoollog"].map(
    (name) => `-l${name}`,
  );
  ran(["cc", "-std=c11", "-D_GNU_SOURCE", "-o", peer, source, ...libraries]);
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
  await withPrograms(async (host) => {
    await atOnce(host, [[0, calls]]);
  });
});

/** Runs shell commands as domains of a host at once; all must succeed, and leave nothing. */
async function atOnce(
  host: SimHost,
  commands: readonly (readonly [domid: number, command: string])[],
): Promise<void> {
  const children = commands.map(([domid, command]) =>
    Bun.spawn([executable, "sim", "exec", String(domid), "--dir", host.dir, "--", "sh", "-c", command], {
      env: { PATH: process.env["PATH"] ?? "", peer, xentool: executable },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    }),
  );
  const said = await Promise.all(
    children.map(async (child) => ({
      status: await child.exited,
      text: await new Response(child.stderr).text(),
    })),
  );
  expect(
    said.map(({ status }) => status),
    said.map(({ text }) => text).join("\n"),
  ).toEqual(children.map(() => 0));
  expect(await host.settle()).toEqual([]);
}

async function withPrograms(body: (host: SimHost) => Promise<void>): Promise<void> {
  const host = await SimHost.start({ domains: 2 });
  try {
    installLibraries(host.dir);
    await body(host);
  } finally {
    await host.stop();
  }
  expect(existsSync(host.dir)).toBe(false);
}

const SENDS = `"$peer" pattern ${BYTES} 2 | "$xentool" vchan`;
const CHECKS = `| "$peer" check ${BYTES} 1`;
const STREAMS = `stream ${BYTES} 1 ${BYTES} 2`;

test.each([
  [1024, 2048],
  [65_536, 65_536],
])("libxenvchan and xentool, each as server and as client, rings of %d and %d bytes", async (read, write) => {
  await withPrograms(async (host) => {
    await atOnce(host, [
      [1, `"$peer" server 0 /local/domain/1/data/vchan/0/a ${read} ${write} ${STREAMS}`],
      [0, `${SENDS} connect 1 a --wait ${CHECKS}`],
    ]);
    await atOnce(host, [
      [0, `"$peer" client 1 /local/domain/1/data/vchan/0/b ${STREAMS}`],
      [1, `${SENDS} listen 0 b --read-size ${read} --write-size ${write} ${CHECKS}`],
    ]);
    await atOnce(host, [
      [1, `"$peer" server 0 data/c ${read} ${write} ${STREAMS}`],
      [0, `"$peer" client 1 /local/domain/1/data/c stream ${BYTES} 2 ${BYTES} 1`],
    ]);
  });
});

test("a program that is killed leaves nothing, and its peer learns of it", async () => {
  await withPrograms(async (host) => {
    const command = (domid: number, ...args: string[]): Bun.Subprocess<"ignore", "pipe", "pipe"> =>
      Bun.spawn([peer, ...args], {
        env: programEnvironment(host.dir, domid),
        stdin: "ignore",
        stdout: "pipe",
        stderr: "pipe",
      });
    const server = command(1, "server", "0", "data/k", "4096", "4096", "hold");
    const client = command(0, "client", "1", "/local/domain/1/data/k", "hold");
    const reader = client.stderr.getReader();
    const first = client.stdout.getReader();
    await Promise.race([reader.read(), first.read()]); // "connected"
    server.kill("SIGKILL");
    await server.exited;
    await client.exited;
    await Promise.all([reader.cancel(), first.cancel()]);
    expect(await host.settle()).toEqual([]);
  });
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
