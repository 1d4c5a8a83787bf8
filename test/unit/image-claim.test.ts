// Claims to an image: on a file system without locks, and the formats that are told from a disk.
import { afterEach, beforeEach, describe, expect, spyOn, test } from "bun:test";
import {
  closeSync,
  mkdirSync,
  openSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { closeImage, openImage, type FileImage } from "../../src/block/image.ts";
import { takeLocks, type LockCalls } from "../../src/block/image/claim.ts";
import { identify } from "../../src/block/image/known.ts";
import { HELD } from "../../src/block/image/open.ts";
import type { XentoolError } from "../../src/core/errors.ts";
import { errnoText } from "../../src/native/shim.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const HOW = { readOnly: false, direct: false, sectorSizeBytes: 512 } as const;

let dir: string;
let file: string;
beforeEach(() => {
  dir = temporaryDirectory();
  file = join(dir, "disk.img");
});
afterEach(() => removeDirectory(dir));

/** What flock and fcntl answer on NFS without lockd, Lustre without -o flock, some FUSE file systems. */
const withoutLocks = (errno: number): LockCalls => ({
  xt_file_lock: () => -errno,
  xt_file_lock_range: () => -errno,
  xt_file_range_locked: () => -errno,
});

describe("a file system without locks", () => {
  let fd: number;
  beforeEach(() => {
    writeFileSync(file, "");
    fd = openSync(file, "r+");
  });
  afterEach(() => closeSync(fd));

  test.each([
    [37, "ENOLCK: no locks available"],
    [38, "ENOSYS: function not implemented"],
  ])("errno %p: a writer is refused, and told how to insist", (errno, words) => {
    expect(() => takeLocks(fd, file, "write", "--mode w!", withoutLocks(errno))).toThrow(
      `${file}: its file system has no locks (${words}), so nobody can tell who else uses it; ` +
        "--mode w! serves it anyway",
    );
  });

  test("a reader harms nobody: it is warned", () => {
    const stderr = spyOn(process.stderr, "write").mockImplementation(() => true);
    try {
      expect(takeLocks(fd, file, "read", "--mode w!", withoutLocks(37))).toBe(true);
    } finally {
      stderr.mockRestore();
    }
  });

  test("whoever shares needs none", () => {
    expect(takeLocks(fd, file, "shared", "--mode w!", withoutLocks(37))).toBe(true);
  });

  test("locks of QEMU's kind may be missing where flock is not", () => {
    expect(takeLocks(fd, file, "write", "--mode w!", { ...withoutLocks(37), xt_file_lock: () => 0 })).toBe(
      true,
    );
  });
});

test("errors that Node has no words for are named", () => {
  expect([errnoText(-37), errnoText(-116), errnoText(-2), errnoText(-4000)]).toEqual([
    "ENOLCK: no locks available",
    "ESTALE: stale file handle",
    "ENOENT: no such file or directory",
    "errno 4000",
  ]);
});

/** A disk's worth of bytes with `magic` at `at`, or if negative that far from the end. */
function write(magic: string, at: number): void {
  const bytes = Buffer.alloc(64 << 10, 0x5a);
  bytes.write(magic, at < 0 ? bytes.length + at : at, "latin1");
  writeFileSync(file, bytes);
}

describe("a container with a disk in it", () => {
  test.each([
    ["a qcow2 image", "QFI\xfb\0\0\0\x03", 0],
    ["a QED image", "QED\0", 0],
    ["a VHD image", "conectix", 0],
    ["a VHD image", "conectix", -512],
    ["a VHDX image", "vhdxfile", 0],
    ["a VMDK image", "KDMV", 0],
    ["a VMDK image", "COWD", 0],
    ["a VMDK image", "# Disk DescriptorFile\nversion=1\n", 0],
    ["a VDI image", "\x7f\x10\xda\xbe", 64],
    ["a Parallels image", "WithoutFreeSpace", 0],
    ["a Parallels image", "WithouFreSpacExt", 0],
    ["a Bochs image", "Bochs Virtual HD Image", 0],
    ["a DMG image", "koly", -512],
    ["a LUKS volume", "LUKS\xba\xbe\0\x02", 0],
  ])("%s (%j at %p) is refused, and served as raw when that is insisted on", (name, magic, at) => {
    write(magic, at);
    for (const readOnly of [false, true])
      expect(() => openImage(file, { ...HOW, readOnly })).toThrow(`${file} looks like ${name}, `);
    closeImage(openImage(file, { ...HOW, format: "raw" }));
  });

  test("as QEMU makes it is recognised", () => {
    for (const format of ["qcow2", "qed", "vpc", "vhdx", "vmdk", "vdi", "parallels"]) {
      const path = join(dir, format);
      expect(Bun.spawnSync(["qemu-img", "create", "-q", "-f", format, path, "4M"]).exitCode).toBe(0);
      expect([format, refusal(path)]).toEqual([format, expect.stringContaining("looks like")]);
    }
  });

  test("of whatever size is told what it is, and not to be padded", () => {
    write("QFI\xfb", 0);
    for (const size of [4, 511, 513, 4095]) {
      truncateSync(file, size);
      expect(refusal(file)).toContain("looks like a qcow2 image");
    }
    truncateSync(file, 0);
    expect(refusal(file)).toContain("is empty");
  });

  test("is refused also when others may write it", () => {
    write("QFI\xfb", 0);
    expect(() => openImage(file, { ...HOW, shared: true })).toThrow("looks like a qcow2 image");
    closeImage(openImage(file, { ...HOW, shared: true, format: "raw" }));
  });

  test("is what a guest of ours has made of its disk: the guest keeps it; what is put there later is refused", () => {
    write("", 0);
    const image = openImage(file, HOW);
    write("QFI\xfb", 0);
    closeImage(image);
    closeImage(openImage(file, HOW));
    write("QFI\xfb", 0);
    utimesSync(file, 1, 1);
    expect(refusal(file)).toContain("looks like a qcow2 image");
  });
});

function refusal(path: string): string {
  try {
    closeImage(openImage(path, HOW));
    return "";
  } catch (error) {
    return String(error);
  }
}

describe("what a killed server has begun keeps its open file until it is over", () => {
  const shared = (user: string): FileImage => openImage(file, { ...HOW, shared: true, user });

  test("so the disk's next server waits for that, though others may share the image", () => {
    writeFileSync(file, Buffer.alloc(4096));
    const former = shared("xvda of domain 1");
    closeImage(shared("xvdb of domain 1"));
    closeImage(shared("xvda of domain 2"));
    const next = attemptToOpen(() => shared("xvda of domain 1"));
    expect(next?.message).toBe(`${file}: what a former server of xvda of domain 1 has begun is not over yet`);
    expect(next?.context["reason"]).toBe(HELD);
    closeImage(former);
    closeImage(shared("xvda of domain 1"));
  });

  test("also where that one had the image for itself, and the next one shares it", () => {
    writeFileSync(file, Buffer.alloc(4096));
    const former = openImage(file, { ...HOW, user: "xvda of domain 1" });
    expect(attemptToOpen(() => shared("xvda of domain 1"))?.context["reason"]).toBe(HELD);
    closeImage(shared("xvda of domain 2"));
    closeImage(former);
  });

  function attemptToOpen(open: () => FileImage): XentoolError | undefined {
    try {
      closeImage(open());
      return undefined;
    } catch (error) {
      return error as XentoolError;
    }
  }
});

test("the smallest disk, and one with the magic number elsewhere, are disks", () => {
  writeFileSync(file, new Uint8Array(512));
  closeImage(openImage(file, HOW));
  write("QFI\xfb", 512);
  closeImage(openImage(file, HOW));
});

test("a device is known again by how many disks there were before it, where the kernel counts them", () => {
  const host = { proc: "/proc", sys: dir };
  const number = join(dir, "dev/block/7:1");
  mkdirSync(number, { recursive: true });
  const device = Object.assign(statSync(dir), { rdev: (7 << 8) | 1, isBlockDevice: () => true });
  expect(identify(device, host)).toEqual({ text: "device 7:1", isSure: false });
  const seen = ["31", "32", "31"].map((count) => {
    writeFileSync(join(number, "diskseq"), `${count}\n`);
    return identify(device, host);
  });
  expect(seen.map(({ isSure }) => isSure)).toEqual([true, true, true]);
  expect(seen[0]).toEqual(seen[2]);
  expect(seen[0]).not.toEqual(seen[1]);
});

test("what was looked at is what is opened, whatever comes to the path meanwhile", async () => {
  const pipe = join(dir, "pipe");
  writeFileSync(file, new Uint8Array(512));
  expect(Bun.spawnSync(["mkfifo", pipe]).exitCode).toBe(0);
  const path = join(dir, "now");
  symlinkSync(file, path);
  const turn = `while (1) { for (@ARGV[1..2]) { symlink $_, "$ARGV[0].next"; rename "$ARGV[0].next", $ARGV[0] } }`;
  const turner = Bun.spawn(["perl", "-e", turn, path, pipe, file]);
  const outcomes = { opened: 0, refused: 0 };
  try {
    while (outcomes.opened < 1500 || outcomes.refused < 1500) {
      try {
        const image = openImage(path, HOW);
        expect(image.info.sizeBytes).toBe(512);
        closeImage(image);
        outcomes.opened++;
      } catch (error) {
        expect(String(error)).toContain("is neither a file nor a block device");
        outcomes.refused++;
      }
    }
  } finally {
    turner.kill("SIGKILL");
    await turner.exited;
  }
});
