// Real NBD clients, unmodified, as judges of `blkfront nbd` and of everything below it: libnbd's nbdinfo and
// nbdcopy, fio, QEMU's qemu-io and qemu-img, and e2fsprogs for what is on the disk.
import { afterEach, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pattern } from "../sim/blk-harness.ts";
import { ServedDisk, type DiskOptions, type RunningNbd } from "../sim/blkfront-harness.ts";
import { finished, start, type Finished } from "../support/process.ts";

let disk: ServedDisk | undefined;

async function serve(options: DiskOptions = {}): Promise<[ServedDisk, RunningNbd]> {
  disk = await ServedDisk.start(options);
  return [disk, await disk.nbd()];
}

afterEach(async () => {
  await disk?.close();
  disk = undefined;
});

const PATH = `${process.env["PATH"]}:/usr/sbin:/sbin`;

function tryRun(...argv: string[]): Promise<Finished> {
  return finished(start(argv, { env: { ...process.env, PATH } }));
}

/** Runs a judge, which has to be content. */
async function run(...argv: string[]): Promise<string> {
  const { status, stdout, stderr } = await tryRun(...argv);
  expect({ argv, status, output: status === 0 ? "" : stdout + stderr }).toEqual({
    argv,
    status: 0,
    output: "",
  });
  return stdout;
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

describe("nbdinfo", () => {
  test("a writable disk", async () => {
    const [, server] = await serve({ imageBytes: 8 << 20 });
    const info = JSON.parse(await run("nbdinfo", "--json", server.uri)) as Record<string, unknown>;
    expect(info).toMatchObject({ protocol: "newstyle-fixed", TLS: false, structured: true });
    expect((info["exports"] as object[])[0]).toMatchObject({
      "export-name": "xvdb",
      "export-size": 8 << 20,
      is_rotational: false,
      is_read_only: false,
      can_cache: false,
      can_df: true,
      can_fast_zero: false,
      can_flush: true,
      can_fua: true,
      can_multi_conn: true,
      can_trim: true,
      can_zero: true,
      block_size_minimum: 512,
      block_size_preferred: 4096,
      block_size_maximum: 32 << 20,
    });
    const list = JSON.parse(await run("nbdinfo", "--list", "--json", server.uri)) as { exports: object[] };
    expect(list.exports).toMatchObject([{ "export-name": "xvdb", description: "PV disk xvdb" }]);
  });

  test("a read-only cdrom with sectors of 4096 bytes", async () => {
    const [, server] = await serve({
      readOnly: true,
      offer: { deviceType: "cdrom", logicalSectorBytes: 4096 },
    });
    const info = JSON.parse(await run("nbdinfo", "--json", server.uri)) as { exports: object[] };
    expect(info.exports[0]).toMatchObject({
      is_read_only: true,
      can_trim: false,
      can_zero: false,
      block_size_minimum: 4096,
    });
  });
});

describe("nbdcopy", () => {
  test.each([
    ["the default ring", {}],
    ["one ring page, no indirect segments", { offer: { maxRingPageOrder: 0, maxIndirectSegments: 0 } }],
    ["mapped grants", { grantMode: "map" }],
    ["kept grants", { grantMode: "persistent" }],
    ["few pages to share", { host: { limits: { sharePages: 64 } } }],
  ] as [string, DiskOptions][])("both ways over %s", async (_name, options) => {
    const [served, server] = await serve({ imageBytes: 24 << 20, ...options });
    const copy = join(served.dir, "copy.img");
    await run("nbdcopy", server.uri, copy);
    expect(sha256(readFileSync(copy))).toBe(sha256(served.image()));
    const other = pattern(24 << 20).reverse();
    writeFileSync(copy, other);
    await run("nbdcopy", "--flush", "--connections=4", copy, server.uri);
    expect(sha256(served.image())).toBe(sha256(other));
  });
});

describe("fio", () => {
  /** Writes, reads back, compares. */
  function verify(server: RunningNbd, ...args: string[]): Promise<string> {
    const engine = ["--name=verify", "--ioengine=nbd", `--uri=${server.uri}`];
    const checks = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0"];
    return run("fio", ...engine, ...checks, "--randrepeat=0", ...args);
  }

  test("mixed sizes", async () => {
    const [, server] = await serve({ imageBytes: 32 << 20 });
    const sizes = ["--bsrange=512-256k", "--blockalign=512", "--size=24M"];
    await verify(server, "--rw=randrw", "--iodepth=64", ...sizes);
  });

  test("deep queues of small writes", async () => {
    const [, server] = await serve({ imageBytes: 16 << 20 });
    await verify(server, "--rw=randwrite", "--bs=4k", "--iodepth=128", "--size=16M");
  });

  test("four connections, each its own part", async () => {
    const [, server] = await serve({ imageBytes: 32 << 20 });
    const parts = ["--numjobs=4", "--thread", "--offset_increment=8M", "--size=8M"];
    const sizes = "--bssplit=4k/40:16k/30:64k/20:1m/10";
    await verify(server, "--rw=randwrite", "--iodepth=32", sizes, ...parts);
  });
});

describe("qemu", () => {
  test("qemu-io: patterns, zeroes, discard, FUA, vectors", async () => {
    const [served, server] = await serve({ imageBytes: 16 << 20 });
    const commands = [
      "write -P 0x5a 4096 65536",
      "read -P 0x5a 4096 65536",
      "write -z 8192 5M",
      "read -P 0 8192 5M",
      "write -z -u 6M 1M",
      "write -f -P 7 512 1024",
      "read -P 7 512 1024",
      "writev -P 3 8M 512 4096 65536 1M",
      "read -P 3 8M 1118720",
      "discard 8M 1M",
      "aio_write -P 9 12M 2M",
      "aio_flush",
      "flush",
    ];
    const output = await run("qemu-io", "-f", "raw", ...commands.flatMap((it) => ["-c", it]), server.uri);
    expect(output).not.toMatch(/failed|error/i);
    const image = served.image();
    expect(image.subarray(12 << 20, 14 << 20).every((byte) => byte === 9)).toBe(true);
    expect(image.subarray(512, 1536).every((byte) => byte === 7)).toBe(true);
    expect(image.subarray(9216, 8192 + (5 << 20)).every((byte) => byte === 0)).toBe(true);
  });

  test("qemu-img: convert and compare", async () => {
    const [served, server] = await serve({ imageBytes: 16 << 20 });
    // Of a copy: the image itself is locked for QEMU's programs, too.
    const copy = join(served.dir, "copy.img");
    copyFileSync(served.imagePath, copy);
    await run("qemu-img", "compare", "-f", "raw", "-F", "raw", server.uri, copy);
    const source = join(served.dir, "source.img");
    const sparse = Buffer.alloc(16 << 20);
    sparse.set(pattern(3 << 20), 5 << 20);
    writeFileSync(source, sparse);
    await run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, server.uri);
    await run("qemu-img", "compare", "-f", "raw", "-F", "raw", server.uri, source);
    expect(sha256(served.image())).toBe(sha256(sparse));
  });

  test("reads that fail are errors to the client, and the next ones are not", async () => {
    const [, server] = await serve({ filters: ["error:rate=100%,op=read"] });
    const failed = await tryRun(
      "qemu-io",
      "-f",
      "raw",
      "-c",
      "read 0 4k",
      "-c",
      "write -P 1 0 4k",
      server.uri,
    );
    expect(failed.stdout + failed.stderr).toContain("read failed: Input/output error");
    expect(failed.stdout).toContain("wrote 4096/4096 bytes");
  });
});

describe("a file system", () => {
  test("made elsewhere, written through the ring, checked on the image", async () => {
    const [served, server] = await serve({ imageBytes: 32 << 20 });
    const source = join(served.dir, "fs.img");
    const files = join(served.dir, "files");
    await run("mkdir", files);
    writeFileSync(join(files, "data"), pattern(5 << 20));
    await run("mke2fs", "-q", "-F", "-t", "ext4", "-d", files, source, "32M");
    await run("nbdcopy", source, server.uri);
    await run("e2fsck", "-fn", served.imagePath);
    const extracted = join(served.dir, "extracted");
    await run("debugfs", "-R", `dump data ${extracted}`, served.imagePath);
    expect(sha256(readFileSync(extracted))).toBe(sha256(pattern(5 << 20)));
  });
});
