// What the kernel's tables say of who uses a device, told from tables of hosts with device-mapper, md and
// partitions, which not every machine that runs the tests has. The lines are as Linux 6.1 writes them.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdirSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { hostUses, listUses, type HostFiles, type Identity } from "../../src/block/image/host-uses.ts";
import { processesWith } from "../../src/block/image/processes.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

let dir: string;
let host: HostFiles;

beforeEach(() => {
  dir = temporaryDirectory();
  host = { proc: join(dir, "proc"), sys: join(dir, "sys") };
});
afterEach(() => removeDirectory(dir));

function put(path: string, text: string): void {
  mkdirSync(dirname(join(dir, path)), { recursive: true });
  writeFileSync(join(dir, path), text);
}

/** A device in sysfs, `path` below /sys/devices. */
function device(path: string, number: string, files: Readonly<Record<string, string>> = {}): void {
  const own = `sys/devices/${path}`;
  for (const [name, text] of Object.entries({ dev: `${number}\n`, ro: "0\n", ...files }))
    put(`${own}/${name}`, text);
  link(`sys/dev/block/${number}`, own);
}

function link(from: string, to: string): void {
  mkdirSync(dirname(join(dir, from)), { recursive: true });
  symlinkSync(join(dir, to), join(dir, from));
}

function mountinfo(...lines: readonly string[]): void {
  put("proc/self/mountinfo", lines.map((line) => `${line}\n`).join(""));
}

const block = (major: number, minor: number): Identity => ({
  dev: 5,
  ino: 1,
  rdev: (major << 8) | minor,
  isBlockDevice: () => true,
});

const named = (image: Identity): string => listUses(hostUses(image, host));

test("a volume over the device, and where that is mounted", () => {
  device("sda", "8:0");
  device("dm-0", "254:0", { "dm/name": "vg-root\n" });
  device("md0", "9:0");
  link("sys/devices/sda/holders/dm-0", "sys/devices/dm-0");
  link("sys/devices/sda/holders/md0", "sys/devices/md0");
  mountinfo("25 1 254:0 / / rw,relatime shared:1 - ext4 /dev/mapper/vg-root rw,errors=remount-ro");
  expect(named(block(8, 0))).toBe("/dev/mapper/vg-root lies over it (mounted at /), /dev/md0 lies over it");
  expect(named(block(254, 0))).toBe("mounted at /");
});

test("a partition of the device, and the device of a partition", () => {
  device("sda", "8:0");
  device("sda/sda1", "8:1", { partition: "1\n" });
  device("sda/sda2", "8:2", { partition: "2\n" });
  mountinfo("30 25 8:1 / /srv/with\\040blank rw - xfs /dev/sda1 rw,attr2");
  expect(named(block(8, 0))).toBe("its partition /dev/sda1 is mounted at /srv/with blank");
  expect(named(block(8, 1))).toBe("mounted at /srv/with blank");
  expect(named(block(8, 2))).toBe("");
  mountinfo("30 25 8:0 / /whole ro - iso9660 /dev/sda ro");
  expect(hostUses(block(8, 2), host)).toEqual([
    { what: "/dev/sda, which it is part of, is mounted at /whole", writes: false },
  ]);
});

test("a mount only says that it writes when its file system does", () => {
  device("sda", "8:0");
  mountinfo(
    "30 25 8:0 / /mnt ro,relatime - ext4 /dev/sda rw",
    "31 25 8:0 /a /view rw,relatime - ext4 /dev/sda ro,norecovery",
  );
  expect(hostUses(block(8, 0), host)).toEqual([
    { what: "mounted at /mnt", writes: true },
    { what: "mounted at /view", writes: false },
  ]);
});

test("many mounts are counted", () => {
  device("sda", "8:0");
  mountinfo(...[1, 2, 3, 4, 5, 6].map((n) => `3${n} 25 8:0 / /mnt${n} rw - ext4 /dev/sda rw`));
  expect(named(block(8, 0))).toMatch(/^mounted at \/mnt1, .*, mounted at \/mnt4 and 2 more$/);
});

test("loop devices over a file, also over one whose name ends oddly, and swap in a file", () => {
  const file = join(dir, "disk (deleted)");
  writeFileSync(file, "");
  device("loop3", "7:3", { "loop/backing_file": `${file}\n`, ro: "1\n" });
  device("loop4", "7:4", { "loop/backing_file": `${file} (deleted)\n` });
  link("sys/block/loop3", "sys/devices/loop3");
  link("sys/block/loop4", "sys/devices/loop4");
  expect(hostUses(statSync(file), host)).toEqual([{ what: "/dev/loop3 lies over it", writes: false }]);
  put("proc/swaps", `Filename Type Size Used Priority\n${file.replaceAll(" ", "\\040")} file 4092 0 -2\n`);
  expect(named(statSync(file))).toBe("swap space of this host, /dev/loop3 lies over it");
});

test("what cannot be looked at, a loop device's file or what a mount names, is another's", () => {
  const file = join(dir, "disk.img");
  writeFileSync(file, "");
  // Neither there nor missing (ELOOP), as what lies on a dead file server.
  symlinkSync("odd", join(dir, "odd"));
  device("loop3", "7:3", { "loop/backing_file": `${dir}/odd\n` });
  link("sys/block/loop3", "sys/devices/loop3");
  put("proc/swaps", `Filename Type Size Used Priority\n${dir}/odd file 4092 0 -2\n`);
  mountinfo("30 25 0:44 / /mnt rw - btrfs /dev/fd/1000000/odd rw");
  expect(hostUses(statSync(file), host)).toEqual([]);
  expect(hostUses(block(7, 3), host)).toEqual([]);
});

test("nothing is known where there is neither /proc nor /sys", () => {
  expect(hostUses(block(8, 0), host)).toEqual([]);
  expect(processesWith(block(8, 0), "/dev/sda", undefined, host)).toEqual([]);
});

test("processes: whoever holds a lock comes before whoever has the file open", () => {
  const file = join(dir, "disk.img");
  writeFileSync(file, "");
  const { ino } = statSync(file);
  const process = (pid: number, comm: string, target: string, fdinfo: string): void => {
    put(`proc/${pid}/comm`, `${comm}\n`);
    put(`proc/${pid}/fdinfo/4`, fdinfo);
    mkdirSync(join(dir, `proc/${pid}/fd`), { recursive: true });
    symlinkSync(target, join(dir, `proc/${pid}/fd/4`));
  };
  process(11, "cat", file, "pos:\t0\n");
  put("proc/12/stat", "12 (qemu) S 9) S 1 12 12 0");
  process(12, "qemu-nbd", file, `pos:\t0\nlock:\t1: OFDLCK ADVISORY  READ -1 fe:00:${ino} 100 101\n`);
  process(13, "other", join(dir, "proc/11/comm"), `lock:\t1: FLOCK  ADVISORY  WRITE 13 fe:01:${ino} 0 EOF\n`);
  expect(processesWith(statSync(file), file, undefined, host)).toEqual([
    { pid: 12, parent: 1, name: "qemu-nbd", locks: true, fds: [4] },
    { pid: 11, parent: 0, name: "cat", locks: false, fds: [4] },
  ]);
  // Whom flock tells of is found at once; whoever took the lock may have left it to a child.
  put(
    "proc/locks",
    `1: FLOCK  ADVISORY  WRITE 11 fe:00:${ino} 0 EOF\n2: OFDLCK ADVISORY  READ -1 fe:00:${ino} 100 101\n`,
  );
  expect(processesWith(statSync(file), file, undefined, host).map(({ pid }) => pid)).toEqual([11]);
  put("proc/locks", `1: FLOCK  ADVISORY  WRITE 99 fe:00:${ino} 0 EOF\n`);
  expect(processesWith(statSync(file), file, undefined, host).map(({ pid }) => pid)).toEqual([12, 11]);
});

test("a file server that the image is not on is not asked what is behind a loop device", () => {
  const image = join(dir, "a.img");
  put("a.img", "");
  put("sys/block/loop0/loop/backing_file", `${image}\n`);
  put("sys/block/loop0/dev", "7:0\n");
  const stat = statSync(image);
  const own = `${(stat.dev >> 8) & 0xfff}:${(stat.dev & 0xff) | ((stat.dev >> 12) & 0xfff00)}`;
  const server = (number: string, type: string): string =>
    `40 25 ${number} / ${dir} rw,relatime - ${type} server:/export rw`;
  const root = "25 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw";
  for (const type of ["nfs4", "cifs", "ceph", "fuse.sshfs", "9p"]) {
    // Here the file would answer, as a server that is gone would not.
    mountinfo(root, server("0:999", type));
    expect(named(stat)).toBe("");
    mountinfo(root, server(own, type));
    expect(named(stat)).toBe("/dev/loop0 lies over it");
  }
  // It is hidden by what was mounted later, and is a sister's whose name goes on.
  mountinfo(root, server("0:999", "nfs4"), server("0:55", "btrfs"));
  expect(named(stat)).toBe("/dev/loop0 lies over it");
  mountinfo(root, `40 25 0:999 / ${dir.slice(0, -1)} rw,relatime - nfs server:/export rw`);
  expect(named(stat)).toBe("/dev/loop0 lies over it");
  put("proc/swaps", `Filename Type Size Used Priority\n${image} file 8 0 -2\n`);
  expect(named(stat)).toBe("swap space of this host, /dev/loop0 lies over it");
  mountinfo(root, server("0:999", "nfs4"));
  expect(named(stat)).toBe("");
});
