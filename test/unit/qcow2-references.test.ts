// Which other files a qcow2 names: in headers written by hand and by QEMU, and in any bytes.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import fc from "fast-check";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  describeReferences,
  isWithin,
  readReferences,
  type Qcow2References,
} from "../../src/block/image/qcow2-references.ts";
import { chosenSeed } from "../support/random.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const seed = chosenSeed();
const CLUSTER_BITS = 9;
const CLUSTER = 2 ** CLUSTER_BITS;
const [BACKING_FORMAT, DATA_FILE, FEATURES] = [0xe279_2aca, 0x4441_5441, 0x6803_f857];

interface Written {
  readonly version?: number;
  readonly extensions?: readonly (readonly [kind: number, content: string])[];
  readonly backing?: string;
  readonly backingOffset?: number;
  readonly backingLength?: number;
  readonly incompatible?: bigint;
  readonly headerBytes?: number;
}

/** The first cluster of an image. The backing file's name is the end of it. */
function written({ version = 3, extensions = [], backing = "", ...wrong }: Written): Buffer {
  const cluster = Buffer.alloc(CLUSTER);
  const { backingOffset = backing === "" ? 0 : CLUSTER - backing.length } = wrong;
  const { headerBytes = version === 2 ? 72 : 104 } = wrong;
  cluster.writeUInt32BE(0x5146_49fb, 0);
  cluster.writeUInt32BE(version, 4);
  cluster.writeBigUInt64BE(BigInt(backingOffset), 8);
  cluster.writeUInt32BE(wrong.backingLength ?? backing.length, 16);
  cluster.writeUInt32BE(CLUSTER_BITS, 20);
  if (version === 3) {
    cluster.writeBigUInt64BE(wrong.incompatible ?? 0n, 72);
    cluster.writeUInt32BE(headerBytes, 100);
  }
  let at = headerBytes;
  for (const [kind, content] of extensions) {
    cluster.writeUInt32BE(kind, at);
    cluster.writeUInt32BE(content.length, at + 4);
    cluster.write(content, at + 8, "latin1");
    at += 8 + Math.ceil(content.length / 8) * 8;
  }
  if (backing !== "") cluster.write(backing, CLUSTER - backing.length, "latin1");
  return cluster;
}

describe("headers by hand", () => {
  test.each<[string, Written, Qcow2References]>([
    ["nothing", {}, {}],
    ["nothing, in version 2", { version: 2 }, {}],
    ["a backing file without a format", { backing: "b.img" }, { backing: "b.img" }],
    [
      "both, after another extension",
      {
        backing: "/b",
        extensions: [
          [FEATURES, "0123456789"],
          [BACKING_FORMAT, "raw"],
        ],
      },
      { backing: "/b", backingFormat: "raw" },
    ],
    [
      "both, in version 2",
      { version: 2, backing: "/b", extensions: [[BACKING_FORMAT, "qcow2"]] },
      { backing: "/b", backingFormat: "qcow2" },
    ],
    ["a format of nothing", { extensions: [[BACKING_FORMAT, "raw"]] }, {}],
    ["a data file", { incompatible: 4n, extensions: [[DATA_FILE, "/d"]] }, { dataFile: "/d" }],
    ["a data file that does not count", { extensions: [[DATA_FILE, "/d"]] }, {}],
    ["a data file without a name", { incompatible: 4n }, { dataFile: "" }],
    [
      "the last of two",
      {
        incompatible: 4n,
        extensions: [
          [DATA_FILE, "/a"],
          [DATA_FILE, "/b"],
        ],
      },
      { dataFile: "/b" },
    ],
    [
      "nothing after the last extension",
      {
        incompatible: 4n,
        extensions: [
          [DATA_FILE, "/a"],
          [0, ""],
          [DATA_FILE, "/b"],
        ],
      },
      { dataFile: "/a" },
    ],
    ["a name up to its NUL", { backing: "/a\0/b" }, { backing: "/a" }],
    ["an empty name", { backing: "\0" }, {}],
  ])("%s", (_, header, expected) => {
    expect(readReferences(written(header))).toEqual(expected);
  });

  test.each<[string, Buffer]>([
    ["another magic number", written({}).fill(0, 0, 1)],
    ["less than the cluster", written({}).subarray(0, CLUSTER - 1)],
    ["less than a header", written({}).subarray(0, 50)],
    ["a name behind the cluster", written({ backingOffset: CLUSTER + 1 })],
    ["a name that ends behind it", written({ backing: "/b", backingLength: 3 })],
    ["an endless name", written({ backing: "/b", backingLength: 0xffff_ffff })],
    ["extensions behind it", written({ headerBytes: CLUSTER + 1 })],
    ["half of an extension's header", written({ headerBytes: CLUSTER - 4 })],
    [
      "an extension that ends behind the name",
      written({ backing: "/b", extensions: [[DATA_FILE, "d".repeat(400)]] }),
    ],
  ])("%s: cannot be told", (_, head) => {
    expect(readReferences(head)).toBeUndefined();
  });
});

test(`any bytes have a result (SEED=${seed})`, () => {
  const changes = fc.array(fc.tuple(fc.nat(CLUSTER - 1), fc.uint8Array({ minLength: 1, maxLength: 16 })));
  const full = written({
    backing: "/b",
    incompatible: 4n,
    extensions: [
      [BACKING_FORMAT, "raw"],
      [DATA_FILE, "/d"],
    ],
  });
  fc.assert(
    fc.property(changes, fc.nat(CLUSTER), (made, length) => {
      const head = Buffer.from(full);
      for (const [at, bytes] of made) head.set(bytes.subarray(0, CLUSTER - at), at);
      // The cluster may be said to be larger.
      const found = readReferences(head.subarray(0, length)) ?? readReferences(head);
      if (found === undefined) return;
      expect(String(found.backing).length).toBeLessThanOrEqual(1023);
      expect(isWithin(found, found)).toBe(true);
      expect(describeReferences(found)).toMatch(/^[^\p{C}]+$/u);
    }),
    { seed, numRuns: 2000 },
  );
});

describe("as QEMU writes them", () => {
  let dir: string;
  beforeEach(() => (dir = temporaryDirectory()));
  afterEach(() => removeDirectory(dir));

  const made = (...args: readonly string[]): Qcow2References | undefined => {
    const made = Bun.spawnSync(["qemu-img", ...args], { cwd: dir, stderr: "inherit" });
    expect(made.exitCode).toBe(0);
    return readReferences(readFileSync(join(dir, "a")));
  };
  const create = (...options: readonly string[]): Qcow2References | undefined =>
    made("create", "-q", "-f", "qcow2", ...options, "a", "1M");

  test("by themselves, and with a base", () => {
    writeFileSync(join(dir, "base"), new Uint8Array(1 << 20));
    expect(create()).toEqual({});
    expect(create("-o", "compat=0.10")).toEqual({});
    expect(create("-b", "base", "-F", "raw")).toEqual({ backing: "base", backingFormat: "raw" });
    expect(create("-o", "compat=0.10", "-b", join(dir, "base"), "-F", "raw")).toEqual({
      backing: join(dir, "base"),
      backingFormat: "raw",
    });
    expect(made("rebase", "-u", "-b", "/etc/hostname", "-F", "raw", "a")).toEqual({
      backing: "/etc/hostname",
      backingFormat: "raw",
    });
  });

  test("with a data file", () => {
    expect(create("-o", "data_file=data,data_file_raw=on")).toEqual({ dataFile: "data" });
  });

  test.each(["512", "2M"])("in clusters of %s", (size) => {
    writeFileSync(join(dir, "base"), new Uint8Array(1 << 20));
    expect(create("-o", `cluster_size=${size}`, "-b", "base", "-F", "raw")).toEqual({
      backing: "base",
      backingFormat: "raw",
    });
  });
});

test("what may be named: nothing new, and no other format of a backing file", () => {
  const before = { backing: "/b", backingFormat: "raw", dataFile: "/d" };
  for (const now of [{}, before, { dataFile: "/d" }, { backing: "/b", backingFormat: "raw" }])
    expect(isWithin(now, before)).toBe(true);
  const others = [
    { backing: "/c", backingFormat: "raw" },
    { backing: "/b", backingFormat: "qcow2" },
    { backing: "/b" },
    { dataFile: "/e" },
    { dataFile: "" },
  ];
  for (const now of others) expect(isWithin(now, before)).toBe(false);
});

test("in a message, what a guest may have written is harmless", () => {
  const latin1 = (text: string): string => Buffer.from(text).toString("latin1");
  expect(describeReferences({})).toBe("no other file");
  expect(describeReferences({ backing: latin1("/bücher\n\x1b[2J"), backingFormat: "raw" })).toBe(
    "backing file /bücher\\x0a\\x1b[2J (raw)",
  );
  expect(describeReferences({ backing: "b", dataFile: "d".repeat(1000) })).toBe(
    `backing file b (format not given) and data file ${"d".repeat(200)}…`,
  );
});
