// The NBD client against other people's servers: qemu-nbd.
import { afterEach, expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { probeExport, resolveHost } from "../../src/block/targets/nbd/probe.ts";
import { NbdTarget } from "../../src/block/targets/nbd/target.ts";
import { parseNbdUri } from "../../src/block/targets/nbd/uri.ts";
import { describeError } from "../../src/core/errors.ts";
import { allocateMemory } from "../../src/native/memory.ts";
import { IO_DISCARD, IO_FLUSH, IO_READ, IO_WRITE, Reactor } from "../../src/native/reactor.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const SIZE = 8 * 1024 * 1024;
let cleanup = new AsyncDisposableStack();
afterEach(async () => {
  await cleanup.disposeAsync();
  cleanup = new AsyncDisposableStack();
});

async function qemuNbd(...options: string[]): Promise<{ readonly uri: string; readonly image: string }> {
  const dir = temporaryDirectory();
  cleanup.defer(() => removeDirectory(dir));
  const image = join(dir, "disk.img");
  const socket = join(dir, "nbd.sock");
  const pidFile = join(dir, "pid");
  writeFileSync(image, new Uint8Array(SIZE).fill(1));
  const args = ["--format=raw", "--persistent", "--shared=8", "--discard=unmap", "--export-name=vm 7"];
  const server = Bun.spawn(
    ["qemu-nbd", ...args, `--socket=${socket}`, `--pid-file=${pidFile}`, ...options, image],
    { stdio: ["ignore", "inherit", "inherit"] },
  );
  cleanup.defer(async () => {
    server.kill();
    await server.exited;
  });
  // It writes its number once it listens.
  while (!existsSync(pidFile) && server.exitCode === null) await Bun.sleep(10);
  return { uri: `nbd+unix:///vm%207?socket=${socket}`, image };
}

async function openTarget(uri: string) {
  const address = await resolveHost(parseNbdUri(uri));
  const seen = await probeExport(address);
  const reactor = Reactor.open(64);
  cleanup.defer(() => reactor.close());
  const memory = allocateMemory(2 * 1024 * 1024);
  cleanup.defer(() => memory.close());
  const ends: (readonly [number, number])[] = [];
  const how = { address, seen, readOnly: false, connections: 4, depth: 32, silenceMs: 20_000 };
  const target = new NbdTarget(how, reactor, (tag, result) => ends.push([tag, result]));
  cleanup.defer(() => target.close());
  const ended = (count: number) => {
    while (ends.length < count) {
      reactor.wait(1, 1_000_000);
      reactor.dispatch();
    }
    return ends.splice(0).sort((a, b) => a[0] - b[0]);
  };
  return { target, memory, seen, ended };
}

test("qemu-nbd: bytes, flush and trim", async () => {
  const { uri, image } = await qemuNbd();
  const { target, memory, seen, ended } = await openTarget(uri);
  expect(seen).toMatchObject({ sizeBytes: SIZE, structured: true });
  expect(target.info).toMatchObject({ sizeBytes: SIZE, readOnly: false, canDiscard: true });
  memory.bytes.fill(5, 0, 1024 * 1024);
  for (let tag = 0; tag < 16; tag++)
    target.start(IO_WRITE, tag, tag * 65536, 65536, memory.address + tag * 65536);
  expect(ended(16).every(([, result]) => result === 65536)).toBe(true);
  target.start(IO_FLUSH, 1, 0, 0, 0);
  expect(ended(1)).toEqual([[1, 0]]);
  const bytes = readFileSync(image);
  expect(bytes.subarray(0, 1024 * 1024).every((byte) => byte === 5)).toBe(true);
  expect(bytes[1024 * 1024]).toBe(1);
  target.start(IO_DISCARD, 1, 0, 65536, 0);
  expect(ended(1)).toEqual([[1, 0]]);
  target.start(IO_READ, 1, 0, 1024 * 1024 + 512, memory.address + 512);
  expect(ended(1)).toEqual([[1, 1024 * 1024 + 512]]);
  expect(memory.bytes[511]).toBe(5);
  expect(memory.bytes[512]).toBe(0);
  expect(memory.bytes[512 + 65536]).toBe(5);
  expect(memory.bytes[512 + 1024 * 1024]).toBe(1);
});

test("qemu-nbd, read-only: no write reaches it", async () => {
  const { uri } = await qemuNbd("--read-only");
  const { target, memory, ended } = await openTarget(uri);
  expect(target.info).toMatchObject({ readOnly: true, canDiscard: false });
  target.start(IO_WRITE, 1, 0, 512, memory.address);
  expect(ended(1)).toEqual([[1, -30]]);
});

test("an export that is not there, and a server that is not", async () => {
  const { uri } = await qemuNbd();
  const other = parseNbdUri(uri.replace("vm%207", "vm8"));
  expect(await probeExport(other).catch(describeError)).toContain("no such export");
  const nowhere = parseNbdUri("nbd+unix:///?socket=/nowhere/a.sock");
  expect(await probeExport(nowhere).catch(describeError)).toContain("cannot reach");
});
