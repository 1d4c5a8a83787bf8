// The files that a device's server leaves to the next one, as they move between the state directory and a guest's own,
// where a process may have left anything that its guest wanted there.
import { afterEach, beforeEach, expect, test } from "bun:test";
import {
  chownSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { lockDevice, lockForGuest } from "../../src/blkback/device/device-lock.ts";
import {
  disksIn,
  guestDir,
  guestsIn,
  hasFiles,
  holdGuestDir,
  type HeldDir,
  removeFiles,
  removeGuest,
  removeGuestDir,
  tidyGuestDir,
} from "../../src/blkback/device/state-directory.ts";
import { STATE_BYTES_MAX } from "../../src/blkback/bounds.ts";
import { Journal } from "../../src/blkback/data-plane/journal.ts";
import { readStats, StatsPage } from "../../src/blkback/stats/stats.ts";
import { WriteLog } from "../../src/block/targets/nbd/write-log.ts";
import { readOwnFile, someNamesIn } from "../../src/native/own-file.ts";
import { toDomid } from "../../src/core/types.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const XVDA = { backend: toDomid(0), kind: "vbd", frontend: toDomid(7), devid: 51712 };
/** Only root can give files to somebody else. */
const [uid, gid] = [process.geteuid?.() ?? 0, process.getegid?.() ?? 0];
const USER = uid === 0 ? { uid: 65_543, gid: 65_544 } : { uid, gid };
const NAMES = ["journal", "journal.1", "journal.1.new", "stats", "writes"].map((it) => `7-51712.${it}`);

let top: string;
let state: string;
let own: string;
let held: HeldDir;

beforeEach(() => {
  top = temporaryDirectory();
  state = join(top, "state");
  own = guestDir(state, XVDA.frontend);
  held = holdGuestDir(state, XVDA.frontend);
});

afterEach(() => {
  held.release();
  removeDirectory(top);
});

function fill(dir: string, names: readonly string[] = NAMES): void {
  for (const name of names) writeFileSync(join(dir, name), name);
}

test("files go to the guest's directory with the lock, and come back with the next one", () => {
  fill(state);
  writeFileSync(join(state, "7-51728.journal"), "another disk's");
  lockForGuest(state, XVDA).release();
  expect(readdirSync(own).sort()).toEqual(NAMES);
  expect(readdirSync(state).sort()).toEqual(["7", "7-51728.journal"]);
  lockDevice(state, XVDA).release();
  expect(readdirSync(state).sort()).toEqual(["7", ...NAMES, "7-51728.journal"]);
  expect(readFileSync(join(state, NAMES[0]), "utf8")).toBe(NAMES[0]);
});

test("they are the files of whoever serves next, and so is the directory", () => {
  const ownersIn = (dir: string): object[] =>
    NAMES.map((name) => statSync(join(dir, name))).map((it) => ({ uid: it.uid, gid: it.gid }));
  const theirs = NAMES.map(() => USER);
  fill(state);
  lockForGuest(state, XVDA, USER).release();
  expect(ownersIn(own)).toEqual(theirs);
  expect(statSync(own)).toMatchObject(USER);
  // As the process of a version that was root left them.
  lockForGuest(state, XVDA).release();
  expect(statSync(own)).toMatchObject({ uid, gid });
  lockForGuest(state, XVDA, USER).release();
  expect(ownersIn(own)).toEqual(theirs);
  lockDevice(state, XVDA).release();
  expect(ownersIn(state)).toEqual(NAMES.map(() => ({ uid, gid })));
});

test("what a server that was killed had moved, and not yet made its own, is the next one's", () => {
  const [link = "", ...others] = NAMES;
  const victim = join(top, "victim");
  writeFileSync(victim, "not ours");
  fill(state, others);
  for (const name of others) chownSync(join(state, name), USER.uid, USER.gid);
  symlinkSync(victim, join(state, link));
  lockDevice(state, XVDA).release();
  expect(readdirSync(state).sort()).toEqual(["7", ...others]);
  for (const name of others) expect(statSync(join(state, name))).toMatchObject({ uid, gid });
  expect(readFileSync(victim, "utf8")).toBe("not ours");
});

test("nothing that has another name, or is reached by one, is given to anybody", () => {
  const secret = join(top, "secret");
  writeFileSync(secret, "root's", { mode: 0o640 });
  linkSync(secret, join(own, "7-51712.journal"));
  symlinkSync(secret, join(own, "7-51712.stats"));
  linkSync(secret, join(state, "7-51712.journal.1"));
  lockForGuest(state, XVDA, USER).release();
  expect(readdirSync(own)).toEqual([]);
  expect(statSync(secret)).toMatchObject({ uid, gid });
  expect(statSync(secret).mode & 0o7777).toBe(0o640);
});

test("a directory that is not the one we made is nobody's", () => {
  held.release();
  removeGuestDir(state, XVDA.frontend);
  mkdirSync(join(top, "elsewhere"));
  symlinkSync(join(top, "elsewhere"), own);
  expect(() => holdGuestDir(state, XVDA.frontend)).toThrow("somebody else has");
  expect(statSync(join(top, "elsewhere"))).toMatchObject({ uid, gid });
  rmSync(own);
  held = holdGuestDir(state, XVDA.frontend);
});

test("nobody moves the files of a disk that is served", () => {
  fill(state);
  const lock = lockDevice(state, XVDA);
  expect(() => lockForGuest(state, XVDA)).toThrow("is served by another process");
  expect(readdirSync(own)).toEqual([]);
  lock.release();
});

test("only what a server may have left comes out of a guest's directory", () => {
  const secret = join(top, "secret");
  writeFileSync(secret, "root's", { mode: 0o640 });
  symlinkSync(secret, join(own, "7-51712.journal"));
  linkSync(secret, join(own, "7-51712.journal.1"));
  mkdirSync(join(own, "7-51712.journal.2"));
  expect(Bun.spawnSync(["mkfifo", join(own, "7-51712.writes")]).exitCode).toBe(0);
  writeFileSync(join(own, "7-51712.stats"), "", { mode: 0o4777 });
  writeFileSync(join(own, "8-51712.journal"), "another guest's");
  writeFileSync(join(own, "7-51712.lock"), "no lock");
  lockDevice(state, XVDA).release();
  expect(readdirSync(state).sort()).toEqual(["7", "7-51712.stats"]);
  expect(statSync(join(state, "7-51712.stats")).mode & 0o7777).toBe(0o644);
  expect(readFileSync(secret, "utf8")).toBe("root's");
  expect(statSync(secret).mode & 0o7777).toBe(0o640);
});

test("the next process of the guest finds no link, pipe or directory in the place of a file", () => {
  symlinkSync("/etc/passwd", join(own, "7-51712.journal"));
  mkdirSync(join(own, "7-51712.journal.1"));
  expect(Bun.spawnSync(["mkfifo", join(own, "7-51712.stats")]).exitCode).toBe(0);
  fill(own, ["7-51712.writes"]);
  lockForGuest(state, XVDA).release();
  expect(readdirSync(own)).toEqual(["7-51712.writes"]);
});

test("all of a disk goes, wherever it is", () => {
  fill(state);
  fill(own);
  fill(own, ["7-51728.stats"]);
  expect(disksIn(state).map(({ devid }) => devid)).toEqual([51712, 51728]);
  removeFiles(state, XVDA);
  expect(hasFiles(state, XVDA)).toBe(false);
  expect(guestsIn(state)).toEqual([XVDA.frontend]);
  removeFiles(state, { ...XVDA, devid: 51728 });
  expect(readdirSync(own)).toEqual([]);
});

test("a guest's directory stays while any process has it, or anything is in it", () => {
  const { frontend } = XVDA;
  const other = holdGuestDir(state, frontend);
  held.release();
  removeGuestDir(state, frontend);
  expect(existsSync(own)).toBe(true);
  other.release();
  fill(own);
  removeGuestDir(state, frontend);
  expect(readdirSync(own).sort()).toEqual(NAMES);
  removeFiles(state, XVDA);
  expect(readdirSync(state)).toEqual([]);
  held = holdGuestDir(state, frontend);
});

test("of a guest that is gone nothing stays, whatever its process made, and nothing else goes", async () => {
  const { frontend } = XVDA;
  const elsewhere = join(top, "elsewhere");
  mkdirSync(join(own, "deep", "deeper"), { recursive: true });
  mkdirSync(elsewhere);
  fill(elsewhere, ["kept"]);
  symlinkSync(elsewhere, join(own, "deep", "link"));
  await removeGuest(state, frontend);
  expect(existsSync(join(own, "deep"))).toBe(true);
  held.release();
  await removeGuest(state, frontend);
  expect(readdirSync(state)).toEqual([]);
  expect(readdirSync(elsewhere)).toEqual(["kept"]);
  held = holdGuestDir(state, frontend);
});

test("a file in a guest's directory counts for that guest alone", () => {
  fill(own, ["8-51712.stats"]);
  expect(disksIn(state)).toEqual([]);
  const page = StatsPage.create(own, 7, 51712);
  page.counters[page.counters.indexOf(7)] = 8;
  page.close();
  expect(readStats(state, 7, 51712)).toMatchObject({ domid: 7, devid: 51712 });
});

test("nothing is read that is large, a link, or never comes", () => {
  const path = join(own, "7-51712.stats");
  writeFileSync(path, "small");
  expect(readOwnFile(path, 16)?.toString()).toBe("small");
  truncateSync(path, 2 ** 40);
  expect(readOwnFile(path, 16)).toBeUndefined();
  symlinkSync(path, join(own, "link"));
  expect(readOwnFile(join(own, "link"), 2 ** 41)).toBeUndefined();
  expect(Bun.spawnSync(["mkfifo", join(own, "pipe")]).exitCode).toBe(0);
  expect(readOwnFile(join(own, "pipe"), 16)).toBeUndefined();
});

const RING = { slots: 32, reqProd: 0, rspProd: 0, mark: 0 };
const makers: readonly (readonly [string, string, (path: string) => unknown])[] = [
  ["statistics", "7-51712.stats", () => StatsPage.create(own, 7, 51712)],
  ["a journal", "7-51712.journal.new", (path) => Journal.open(path.replace(".new", ""), RING, () => {})],
  ["a log of writes", "7-51712.writes", (path) => WriteLog.open(path, "it", 1 << 20)],
];
test.each(makers)("%s is made neither behind a link nor in a file with another name", (_what, name, make) => {
  const victim = join(top, "victim");
  writeFileSync(victim, "not ours");
  for (const plant of [symlinkSync, linkSync]) {
    plant(victim, join(own, name));
    expect(() => make(join(own, name))).toThrow();
    expect(readFileSync(victim, "utf8")).toBe("not ours");
    rmSync(join(own, name), { force: true });
  }
});

test("for want of a descriptor nobody's journal is taken for a stranger's, and none is left open", () => {
  fill(own);
  const imported = (path: string): string => `await import(${JSON.stringify(join(import.meta.dir, path))})`;
  const script = `
    import { closeSync, openSync } from "node:fs";
    const { lockDevice } = ${imported("../../src/blkback/device/device-lock.ts")};
    const { describeError } = ${imported("../../src/core/errors.ts")};
    const { openDescriptors } = ${imported("../support/descriptors.ts")};
    const lock = () => {
      try {
        return lockDevice(process.env.STATE, ${JSON.stringify(XVDA)}).release();
      } catch (error) {
        return describeError(error);
      }
    };
    const before = openDescriptors().length;
    const taken = [];
    try {
      for (;;) taken.push(openSync("/dev/null", "r"));
    } catch {}
    // The lock has the last one.
    closeSync(taken.pop());
    const refusal = lock();
    for (const fd of taken) closeSync(fd);
    console.log(JSON.stringify([refusal, openDescriptors().length - before, lock() ?? "locked"]));`;
  const ran = Bun.spawnSync(["sh", "-c", 'ulimit -n 64 && exec "$0" -e "$SCRIPT"', process.execPath], {
    env: { ...process.env, STATE: state, SCRIPT: script },
    stderr: "inherit",
  });
  const [refusal, left, next] = JSON.parse(ran.stdout.toString()) as [string, number, string];
  expect(refusal).toMatch(/^cannot move the files of .*too many open files/i);
  expect([left, next]).toEqual([0, "locked"]);
  expect(readdirSync(state).sort()).toEqual(["7", ...NAMES]);
});

test("a file that is too large to be a disk's is none", () => {
  fill(own);
  truncateSync(join(own, "7-51712.journal"), STATE_BYTES_MAX.journal + 1);
  truncateSync(join(own, "7-51712.writes"), STATE_BYTES_MAX.writes);
  fill(state, ["7-51712.stats"]);
  truncateSync(join(state, "7-51712.stats"), STATE_BYTES_MAX.stats + 1);
  lockForGuest(state, XVDA, USER).release();
  expect(readdirSync(own).sort()).toEqual(NAMES.filter((name) => name !== "7-51712.journal"));
});

test("what a process planted, however much, keeps nobody, and goes when it has ended", async () => {
  const { frontend } = XVDA;
  const planted = 20_000;
  fill(own);
  for (let i = 0; i < planted; i++) writeFileSync(join(own, `7-${i}.strange`), "");
  mkdirSync(join(own, "7-51712.journal.99", "deeper"), { recursive: true });
  writeFileSync(Buffer.concat([Buffer.from(`${own}/`), Buffer.from([0xff, 0xfe])]), "");
  writeFileSync(join(own, "8-51712.stats"), "another guest's");
  mkdirSync(join(own, "7-51712.journal.2", "deeper"), { recursive: true });
  expect(someNamesIn(own).length).toBeLessThan(planted);
  // None of them is a disk.
  expect(disksIn(state).length).toBeLessThan(2);
  lockForGuest(state, XVDA).release();
  await tidyGuestDir(state, frontend);
  expect(readdirSync(own).length).toBeGreaterThan(planted);
  held.release();
  await tidyGuestDir(state, frontend);
  expect(readdirSync(own).sort()).toEqual(NAMES);
  expect(disksIn(state)).toEqual([{ frontend, devid: XVDA.devid }]);
  removeFiles(state, XVDA);
  held = holdGuestDir(state, frontend);
  held.release();
  await tidyGuestDir(state, frontend);
  expect(readdirSync(state)).toEqual([]);
  held = holdGuestDir(state, frontend);
});
