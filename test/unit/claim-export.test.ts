// Claims to NBD exports: one writer for each on this host, however its address is written, with the words that an image
// that is a file has.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { claimExport, keysOfExport } from "../../src/block/image/claim-export.ts";
import type { Claim } from "../../src/block/image/claim.ts";
import { COMMAND_WAYS } from "../../src/block/image/open.ts";
import { parseNbdUri } from "../../src/block/targets/nbd/uri.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

let dir: string;
let claims: string;
beforeEach(() => {
  dir = temporaryDirectory();
  claims = join(dir, "claims");
});
afterEach(() => {
  expect(readdirSync(claims)).toEqual([]);
  removeDirectory(dir);
});

async function claim(uri: string, how: Claim, user = "xvdb of domain 1"): Promise<Disposable> {
  const keys = await keysOfExport(parseNbdUri(uri));
  return claimExport(claims, keys, { name: uri, claim: how, user, ways: COMMAND_WAYS });
}

test("a second writer is refused, and told who is the first", async () => {
  using _ = await claim("nbd://127.0.0.1/vm7", "write");
  expect(claim("nbd://127.0.0.1/vm7", "write", "xvdc of domain 2")).rejects.toMatchObject({
    message:
      "nbd://127.0.0.1/vm7 is in use: xvdb of domain 1, served by this process; --mode w! shares it anyway",
    context: { reason: "held", own: true },
  });
});

const pairs: readonly (readonly [Claim, Claim, boolean])[] = [
  ["write", "read", false],
  ["read", "write", false],
  ["read", "read", true],
  ["shared", "shared", true],
  ["write", "shared", true],
  ["shared", "write", false],
  ["shared", "read", false],
];
test.each(pairs)("%s, then %s: %p, as for a file", async (first, second, isLetIn) => {
  using _ = await claim("nbd://127.0.0.1/vm7", first);
  const next = await claim("nbd://127.0.0.1/vm7", second).catch(() => undefined);
  expect(next !== undefined).toBe(isLetIn);
  next?.[Symbol.dispose]();
});

test("a host is known by its name and its addresses, with its port", async () => {
  using _ = await claim("nbd://localhost/vm7", "write");
  for (const same of ["nbd://127.0.0.1:10809/vm7", "nbds://LOCALHOST/vm7", "nbd://127.0.0.1/vm%37"])
    expect(claim(same, "write")).rejects.toMatchObject({ context: { reason: "held" } });
  for (const other of ["nbd://127.0.0.1:10810/vm7", "nbd://127.0.0.1/vm8", "nbd://127.0.0.2/vm7"])
    (await claim(other, "write"))[Symbol.dispose]();
});

test("an address of IPv6 may be written in many ways", async () => {
  using _ = await claim("nbd://[::1]/vm7", "write");
  expect(claim("nbd://[0:0::0:1]/vm7", "write")).rejects.toMatchObject({ context: { reason: "held" } });
});

test("a socket is known by what it is, and by its path when there is another one", async () => {
  const socket = join(dir, "nbd.sock");
  const at = (path: string): string => `nbd+unix:///?socket=${path}`;
  writeFileSync(socket, "");
  symlinkSync(socket, join(dir, "link"));
  using _ = await claim(at(socket), "write");
  expect(claim(at(join(dir, "link")), "write")).rejects.toMatchObject({ context: { reason: "held" } });
  removeDirectory(socket);
  writeFileSync(join(dir, "new"), "");
  writeFileSync(socket, "");
  expect(claim(at(socket), "write")).rejects.toMatchObject({ context: { reason: "held" } });
  (await claim(at(join(dir, "new")), "write"))[Symbol.dispose]();
});

test("who has its descriptors keeps it after we have given it up", async () => {
  const keys = await keysOfExport(parseNbdUri("nbd://127.0.0.1/vm7"));
  const options = { name: "it", claim: "write", user: "xvdb of domain 1", ways: COMMAND_WAYS } as const;
  const first = claimExport(claims, keys, options);
  const holder = Bun.spawn(["cat"], { stdio: ["pipe", "ignore", "inherit", ...first.fds] });
  first[Symbol.dispose]();
  expect(() => claimExport(claims, keys, options)).toThrow(`it is in use: process ${holder.pid}, cat`);
  await holder.stdin.end();
  await holder.exited;
  claimExport(claims, keys, options)[Symbol.dispose]();
});

test("what was claimed before a refusal is given up", async () => {
  using _ = await claim("nbd://127.0.0.1/vm7", "write");
  const keys = [
    ...(await keysOfExport(parseNbdUri("nbd://[::1]/vm7"))),
    ...(await keysOfExport(parseNbdUri("nbd://127.0.0.1/vm7"))),
  ];
  const how = { name: "it", claim: "write", user: "xvdc", ways: COMMAND_WAYS } as const;
  expect(() => claimExport(claims, keys, how)).toThrow("it is in use");
  (await claim("nbd://[::1]/vm7", "write"))[Symbol.dispose]();
});

test("a directory without room for both claims: the disk is refused with the reason, and the first is given up", () => {
  const script = `
    import { readdirSync } from "node:fs";
    const { claimExport } = await import(${JSON.stringify(import.meta.resolve("../../src/block/image/claim-export.ts"))});
    const { describeError } = await import(${JSON.stringify(import.meta.resolve("../../src/core/errors.ts"))});
    const claim = (keys) => {
      const { name, user, ways } = { name: "it", user: "xvdc", ways: ${JSON.stringify(COMMAND_WAYS)} };
      try {
        using _ = claimExport(process.env.CLAIMS, keys, { name, claim: "write", user, ways });
        return "claimed";
      } catch (error) {
        return describeError(error);
      }
    };
    console.log(JSON.stringify([claim(["a", "b"]), readdirSync(process.env.CLAIMS), claim(["a"])]));`;
  // The directory itself is the first of the two inodes.
  const mounted = `mkdir "$CLAIMS" && mount -t tmpfs -o nr_inodes=2 none "$CLAIMS" && exec "$0" -e "$SCRIPT"`;
  const asRoot = process.getuid?.() === 0 ? [] : ["--user", "--map-root-user"];
  const ran = Bun.spawnSync(["unshare", ...asRoot, "--mount", "sh", "-c", mounted, process.execPath], {
    env: { ...process.env, CLAIMS: claims, SCRIPT: script },
    stderr: "inherit",
  });
  const [both, left, one] = JSON.parse(ran.stdout.toString()) as [string, string[], string];
  expect(both).toMatch(/^cannot lock .*\.export: .*no space left on device/i);
  expect([left, one]).toEqual([[], "claimed"]);
});
