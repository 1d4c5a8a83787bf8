// `serve --format`, `--via` and watch's words for them: who may open the image when, and the life of the program that
// opens it for us.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, readFileSync, renameSync, symlinkSync, writeFileSync } from "node:fs";
import { backendDir, DEFAULT_KIND, type DeviceAddress } from "../../src/blkback/address.ts";
import { createDevice } from "../../src/blkback/toolstack.ts";
import { toDomid } from "../../src/core/types.ts";
import { parseVdev } from "../../src/protocol/blkif.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { readUntil } from "../support/process.ts";
import { detach } from "./disk-host.ts";
import { judge, ProgramDisks, programItself, programsWith, untilNone } from "./program-disks.ts";

const FAILED = -1;
const DAEMON = "qemu-storage-daemon";
const serve = (image: string, vdev: string, ...options: string[]): string[] =>
  ["blkback", "serve", image, "--domid", "1", "--vdev", vdev].concat(options);

const deviceOf = (vdev: string): DeviceAddress => ({
  backend: toDomid(0),
  frontend: toDomid(1),
  kind: DEFAULT_KIND,
  devid: Number(parseVdev(vdev)),
});

let world: ProgramDisks;
let image: string;
beforeEach(async () => {
  world = await ProgramDisks.start({ "disk.img": new Uint8Array(1 << 20).fill(5) });
  image = world.path("disk.qcow2");
  await judge("qemu-img", "convert", "-q", "-O", "qcow2", world.path("disk.img"), image);
});
afterEach(() => world.close());

describe("who may have the image", () => {
  test("a writer has it alone; readers share it", async () => {
    const writer = await world.connect(image, "xvdb", "--format", "qcow2");
    const asked = [
      world.run(serve(image, "xvdc", "--format", "qcow2")),
      world.run(serve(image, "xvdd", "--format", "raw")),
    ];
    for (const second of await Promise.all(asked)) {
      expect(second.stderr).toContain(`${image} is in use: process ${writer.server.pid}, xentool`);
      expect(second.status).toBe(3);
    }
    expect(await writer.end()).toBe(143);
    const readers = [
      await world.connect(image, "xvdb", "--format", "qcow2", "--mode", "r"),
      await world.connect(image, "xvdc", "--format", "qcow2", "--mode", "r"),
    ];
    for (const { guest } of readers) {
      expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(5));
      expect(await guest.write(8, 1)).toBe(FAILED);
    }
    for (const { end } of readers) expect(await end()).toBe(143);
  });

  test("two writers are refused even if they insist, and so is what QEMU has open", async () => {
    expect(await world.run(serve(image, "xvdb", "--format", "qcow2", "--mode", "w!"))).toMatchObject({
      status: 2,
      stderr: expect.stringContaining("two writers would ruin a qcow2 image"),
    });
    const [socket, pidFile] = [world.path("qemu.sock"), world.path("pid")];
    const other = Bun.spawn(
      ["qemu-nbd", "-f", "qcow2", `--socket=${socket}`, `--pid-file=${pidFile}`, image],
      {
        stdio: ["ignore", "inherit", "inherit"],
      },
    );
    while (!existsSync(pidFile)) await Bun.sleep(10);
    const refused = await world.run(serve(image, "xvdb", "--format", "qcow2"));
    other.kill();
    await other.exited;
    expect(refused.stderr).toContain(`${image} is in use: process ${other.pid}, qemu-nbd`);
    expect(refused.status).toBe(3);
  });

  test("a successor after kill -9 waits for the first one's program; the image stays whole", async () => {
    const first = await world.connect(image, "xvdb", "--format", "qcow2");
    expect(await first.guest.write(0, 7)).toBe(0);
    expect(await first.guest.flush()).toBe(0);
    // A program that cannot end yet: it gets SIGTERM, but does not run.
    const program = programItself(DAEMON, image);
    process.kill(program, "SIGSTOP");
    first.server.kill("SIGKILL");
    await first.server.exited;
    const next = world.spawn(["-v", ...serve(image, "xvdb", "--format", "qcow2")]);
    await readUntil(next.stderr, "waiting");
    expect(programsWith(image)).toContain(program);
    process.kill(program, "SIGCONT");
    await readUntil(next.stderr, "taking over");
    expect(programItself(DAEMON, image)).not.toBe(program);
    next.kill("SIGKILL");
    await next.exited;
    await untilNone(image);
    await judge("qemu-img", "check", "-q", image);
    first.guest.close();
    await world.run(["blkback", "destroy", "--domid", "1", "--vdev", "xvdb"]);
  });
});

describe("the program's life", () => {
  test("kill -9 of the program: it is started again, and its disk alone waits until then", async () => {
    const other = world.path("other.qcow2");
    await judge("qemu-img", "create", "-q", "-f", "qcow2", other, "1M");
    const [disk, neighbour] = [
      await world.connect(image, "xvdb", "--format", "qcow2"),
      await world.connect(other, "xvdc", "--format", "qcow2"),
    ];
    const program = programItself(DAEMON, image);
    expect(await disk.guest.write(8, 4)).toBe(0);
    process.kill(program, "SIGKILL");
    await readUntil(disk.server.stderr, `${DAEMON} was killed by signal 9`);
    expect(await neighbour.guest.write(0, 3)).toBe(0);
    await readUntil(disk.server.stderr, "it is served now");
    expect(programItself(DAEMON, image)).not.toBe(program);
    expect(await disk.guest.write(0, 3)).toBe(0);
    expect(await disk.guest.read(8)).toEqual(new Uint8Array(4096).fill(4));
    expect(await disk.end()).toBe(143);
    expect(await neighbour.end()).toBe(143);
    await judge("qemu-img", "check", "-q", image);
  });

  test("another image at the path of one that is served gets nothing of it, and is no replacement", async () => {
    const disk = await world.connect(image, "xvdb", "--format", "qcow2");
    expect(await disk.guest.write(8, 4)).toBe(0);
    const [away, another] = [world.path("away.qcow2"), world.path("another.qcow2")];
    await judge("qemu-img", "create", "-q", "-f", "qcow2", another, "1M");
    renameSync(image, away);
    renameSync(another, image);
    process.kill(programItself(DAEMON, image), "SIGKILL");
    await readUntil(disk.server.stderr, `${image} is another image than the one that is served`);
    renameSync(image, another);
    renameSync(away, image);
    await readUntil(disk.server.stderr, "it is served now");
    expect(await disk.guest.read(8)).toEqual(new Uint8Array(4096).fill(4));
    expect(await disk.end()).toBe(143);
    expect(JSON.parse(await judge("qemu-img", "map", "--output=json", another))).toMatchObject([
      { data: false, zero: true },
    ]);
  });

  test("another image at the path of one whose server was killed gets nothing of it either", async () => {
    const { server, guest } = await world.connect(image, "xvdb", "--format", "qcow2");
    expect(await guest.write(8, 4)).toBe(0);
    server.kill("SIGKILL");
    await server.exited;
    await untilNone(image);
    const [away, another] = [world.path("away.qcow2"), world.path("another.qcow2")];
    await judge("qemu-img", "create", "-q", "-f", "qcow2", another, "1M");
    renameSync(image, away);
    renameSync(another, image);
    const refused = await world.run(serve(image, "xvdb", "--format", "qcow2"));
    expect(refused.stderr).toContain(`in use with another image than qcow2:${image} is now`);
    expect(refused.status).toBe(2);
    renameSync(image, another);
    renameSync(away, image);
    const next = await world.serve(image, "xvdb", "--format", "qcow2");
    expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(4));
    expect(await detach(next, guest)).toBe(143);
    expect(JSON.parse(await judge("qemu-img", "map", "--output=json", another))).toMatchObject([
      { data: false, zero: true },
    ]);
  });

  test("nor does it once the guest has let go meanwhile", async () => {
    const { server, guest } = await world.connect(image, "xvdb", "--format", "qcow2", "--in-place", "no");
    expect(await guest.write(8, 4)).toBe(0);
    server.kill("SIGKILL");
    await server.exited;
    await untilNone(image);
    await guest.setState(6);
    guest.close();
    const away = world.path("away.qcow2");
    renameSync(image, away);
    await judge("qemu-img", "create", "-q", "-f", "qcow2", image, "1M");
    const next = await world.connect(image, "xvdb", "--format", "qcow2", "--in-place", "no");
    expect(await next.guest.read(8)).toEqual(new Uint8Array(4096));
    expect(await detach(next.server, next.guest)).toBe(143);
    expect(JSON.parse(await judge("qemu-img", "map", "--output=json", image))).toMatchObject([
      { data: false, zero: true },
    ]);
  });

  test("another image that comes to the path just before the daemon opens it is not served", async () => {
    const [away, another] = [world.path("away.qcow2"), world.path("another.qcow2")];
    await judge("qemu-img", "create", "-q", "-f", "qcow2", another, "1M");
    const version = `[ "$1" = --version ] && exec ${Bun.which(DAEMON)} --version`;
    const script = `#!/bin/sh\n${version}\nmv ${image} ${away}; mv ${another} ${image}\nexec ${Bun.which(DAEMON)} "$@"\n`;
    writeFileSync(world.path(DAEMON), script, { mode: 0o755 });
    const PATH = `${world.disks.dir}:${process.env["PATH"]}`;
    const refused = await world.run(serve(image, "xvdb", "--format", "qcow2"), { PATH });
    expect(refused.stderr).toContain(`${image} is another image than the one that is served`);
    expect(refused.status).toBe(5);
  });

  test("a daemon without io_uring, or too old for it, serves with threads", async () => {
    const aio = (): string[] =>
      programsWith(image, (command) => command.endsWith(DAEMON)).map(
        (pid) => /"aio":"(\w+)"/.exec(readFileSync(`/proc/${pid}/cmdline`, "utf8"))?.[1] ?? "",
      );
    const real = String(Bun.which(DAEMON));
    const version = (number: string): string =>
      `[ "$1" = --version ] && exec echo "${DAEMON} version ${number}"`;
    const refuses = `case "$*" in *'"aio":"io_uring"'*) echo "Unable to use linux io_uring: Function not implemented" >&2; exit 1;; esac`;
    for (const [lines, expected] of [
      [version("7.2.22 (Debian)"), "io_uring"],
      [`${version("8.0.0")}\n${refuses}`, "threads"],
      [version("7.1.0"), "threads"],
    ]) {
      writeFileSync(world.path(DAEMON), `#!/bin/sh\n${lines}\nexec ${real} "$@"\n`, { mode: 0o755 });
      const PATH = `${world.disks.dir}:${process.env["PATH"]}`;
      const server = world.spawn(["-v", ...serve(image, "xvdb", "--format", "qcow2")], { PATH });
      await readUntil(server.stderr, "offering");
      expect(aio()).toEqual([expected]);
      const guest = await world.guest("xvdb");
      expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(5));
      expect(await detach(server, guest)).toBe(143);
    }
  });

  test("a format before the path is for xl", async () => {
    const words = await world.run(serve(`qcow2:${image}`, "xvdb"));
    expect(words.stderr).toContain(`here it is ${image} --format qcow2`);
    expect(words.status).toBe(2);
  });

  test("what a program that fails at once says is the error", async () => {
    const raw = await world.run(serve(world.path("disk.img"), "xvdb", "--format", "qcow2"));
    expect(raw.stderr).toContain(`${DAEMON} ended with status 1`);
    expect(raw.stderr).toContain("--blockdev …: Image is not in qcow2 format");
    expect(raw.status).toBe(5);
    writeFileSync(world.path("odd.img"), new Uint8Array(200_001));
    const odd = await world.run(serve(world.path("odd.img"), "xvdb", "--format", "vhd"));
    expect(odd.stderr).toContain("--blockdev …: invalid VPC image");
    const script = `#!/bin/sh\necho "--blockdev …: Unknown driver 'rbd'" >&2; exit 1\n`;
    writeFileSync(world.path(DAEMON), script, { mode: 0o755 });
    const PATH = `${world.disks.dir}:${process.env["PATH"]}`;
    const rbd = await world.run(serve("pool/vm", "xvdb", "--format", "rbd"), { PATH });
    expect(rbd.stderr).toContain("Unknown driver 'rbd'; apt install qemu-block-extra");
    const via = await world.run(serve("x", "xvdb", "--via", "sh -c 'echo sorry >&2; exit 4'"));
    expect(via.stderr).toContain("the command of --via ended with status 4: sorry");
  });

  test("a size that is no whole number of sectors: the image is named", async () => {
    const odd = world.path("odd.qcow2");
    await judge("qemu-img", "create", "-q", "-f", "qcow2", odd, "1263616");
    const refused = await world.run(serve(odd, "xvdb", "--format", "qcow2", "--sector-size", "4096"));
    expect(refused.stderr).toContain(`${odd}: its size, 1263616, is not a multiple of 4096 bytes`);
    expect(refused.status).toBe(2);
  });

  test("a program that is not installed: its package is named", async () => {
    const PATH = world.disks.dir;
    const missing = await world.run(serve(image, "xvdb", "--format", "qcow2"), { PATH });
    expect(missing.stderr).toContain("apt install qemu-utils (Debian 12: qemu-system-common)");
    expect(missing.status).toBe(3);
  });

  test("a PATH with the daemon and nothing else: it serves", async () => {
    symlinkSync(String(Bun.which(DAEMON)), world.path(DAEMON));
    const PATH = world.disks.dir;
    const server = world.spawn(["-v", ...serve(image, "xvdb", "--format", "qcow2")], { PATH });
    await readUntil(server.stderr, "offering");
    const guest = await world.guest("xvdb");
    expect(await guest.write(8, 4)).toBe(0);
    expect(await detach(server, guest)).toBe(143);
  });

  test.each([
    ["that is nowhere", "no-such-server $1", "not found"],
    ["that may not be executed", "/ $1", "Permission denied"],
  ])("a command of --via %s: the host lacks it", async (_, command, words) => {
    const lacking = await world.run(serve("x", "xvdb", "--via", command));
    expect(lacking.stderr).toContain("the command of --via cannot be started: ");
    expect(lacking.stderr).toContain(words);
    expect(lacking.status).toBe(3);
  });

  test("a daemon whose interpreter is not there: the host lacks it", async () => {
    writeFileSync(world.path(DAEMON), "#!/no/such/sh\n", { mode: 0o755 });
    const PATH = `${world.disks.dir}:${process.env["PATH"]}`;
    const lacking = await world.run(serve(image, "xvdb", "--format", "qcow2"), { PATH });
    expect(lacking.stderr).toContain(`${DAEMON} cannot be started: `);
    expect(lacking.status).toBe(3);
  });

  test("contradictions", async () => {
    for (const [args, words] of [
      [[image, "--via", "nbdkit file $1", "--format", "qcow2"], "--via"],
      [[image, "--format", "qcow2", "--key-file", "/etc/hostname"], "--key-file is for --format luks"],
      [["nbd://localhost", "--format", "qcow2"], "without --format"],
      [["nbd://localhost", "--threads", "2"], "needs --threads 1"],
      [[image, "--format", "qcow2", "--threads", "2"], "needs --threads 1"],
    ] as const) {
      const refused = await world.run(serve(args[0], "xvdb", ...args.slice(1)));
      expect(refused.stderr).toContain(words);
      expect(refused.status).toBe(2);
    }
  });
});

describe("--via", () => {
  test.each([
    ["nbdkit file", "nbdkit --foreground file $1"],
    ["qemu-nbd", 'qemu-nbd --format=raw --persistent --shared=8 --discard=unmap "$1"'],
    ["a shell's line that ends in exec", `sh -c ': first; exec nbdkit --foreground file "$1"' sh "$1"`],
  ])("%s", async (_, command) => {
    const file = world.path("disk.img");
    const disk = await world.connect(file, "xvdb", "--via", command);
    expect(await disk.guest.read(8)).toEqual(new Uint8Array(4096).fill(5));
    expect(await disk.guest.write(16, 6)).toBe(0);
    expect(await disk.guest.flush()).toBe(0);
    expect(await disk.end()).toBe(143);
    expect(readFileSync(file)[16 * 512]).toBe(6);
  });

  test("nbdkit memory, which no file stands for", async () => {
    const disk = await world.connect("64M", "xvdb", "--via", "nbdkit --foreground memory $1");
    expect(await disk.guest.write(16, 6)).toBe(0);
    expect(await disk.guest.read(16)).toEqual(new Uint8Array(4096).fill(6));
    const [listed] = JSON.parse((await world.run(["blkback", "list", "--json"])).stdout) as {
      params: string;
    }[];
    expect(listed?.params).toBe("via:64M");
    expect(await disk.end()).toBe(143);
  });

  test.each([
    ["memory 1263616", "1M with this --via: its size, 1263616, is not a multiple of 4096 bytes", 2],
    ["--readonly memory 1M", "1M with this --via is read-only; --mode r serves it", 3],
    [
      "--filter=exportname memory 1M exportname=vm exportname-strict=true",
      "the command of --via must serve 1M under the empty name: the NBD server refuses",
      3,
    ],
    [
      "--filter=ip memory 1M deny=all",
      "the command of --via does not serve 1M: the server closed the connection",
      5,
    ],
  ])("nbdkit %s: refused in the user's words", async (what, words, expected) => {
    const args = ["--via", `nbdkit --foreground ${what}`, "--sector-size", "4096"];
    const { status, stderr } = await world.run(serve("1M", "xvdb", ...args));
    expect(stderr).toContain(words);
    expect(stderr).not.toContain(".nbd");
    expect(status).toBe(expected);
  });

  test("one that never serves: SIGTERM ends the wait, and it", async () => {
    const server = world.spawn([
      "-v",
      ...serve(world.disks.dir, "xvdb", "--via", "sh -c 'echo up >&2; sleep 1000' $1"),
    ]);
    await readUntil(server.stderr, "up");
    server.kill("SIGTERM");
    expect(await server.exited).toBe(143);
    expect(programsWith(world.disks.dir)).toEqual([]);
  });

  test("one that prints without end, and leaves children: the log is bounded, and nothing stays", async () => {
    const noisy = world.path("noisy");
    writeFileSync(noisy, '#!/bin/sh\nyes "$1" >&2 &\nexec nbdkit --foreground memory 1M\n', { mode: 0o755 });
    const server = world.spawn(serve(world.disks.dir, "xvdb", "--via", `${noisy} "$1"`));
    const log = await readUntil(server.stderr, "more lines");
    expect(log.split("\n").length).toBeLessThan(100);
    const guest = await world.guest("xvdb");
    expect(await guest.write(0, 1)).toBe(0);
    server.kill("SIGKILL");
    await server.exited;
    await untilNone(world.disks.dir);
    guest.close();
    await world.run(["blkback", "destroy", "--domid", "1", "--vdev", "xvdb"]);
  });
});

test("watch serves what xl names: target=qcow2:PATH", async () => {
  const at = deviceOf("xvdb");
  const dom0 = world.disks.host.platform(0);
  const xenstore = await Xenstore.connect(dom0);
  const watch = world.spawn(["-v", "blkback", "watch", "--kind", DEFAULT_KIND, "--any-script"]);
  const params = `qcow2:${image}`;
  await createDevice(xenstore, { address: at, readOnly: false, deviceType: "disk", params });
  await readUntil(watch.stderr, "InitWait");
  const guest = await world.guest("xvdb");
  expect(await guest.read(8)).toEqual(new Uint8Array(4096).fill(5));
  expect(await xenstore.read(`${backendDir(at)}/hotplug-status`)).toBe("connected");
  await guest.setState(6);
  watch.kill("SIGTERM");
  await watch.exited;
  await untilNone(image);
  guest.close();
  await world.run(["blkback", "destroy", "--domid", "1", "--vdev", "xvdb"]);
  xenstore.close();
  dom0.close();
});
