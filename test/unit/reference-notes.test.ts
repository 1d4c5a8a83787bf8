// A qcow2 that a guest's process could write may name only what it named before.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  closeSync,
  copyFileSync,
  existsSync,
  fstatSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { expectKnownReferences, noteReferences, notesBeside } from "../../src/block/image/reference-notes.ts";
import { NOTES_MAX } from "../../src/block/image/notes.ts";
import { XentoolError } from "../../src/core/errors.ts";
import type { Qcow2References } from "../../src/block/image/qcow2-references.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

let dir: string;
let notes: string;
beforeEach(() => {
  dir = temporaryDirectory();
  notes = notesBeside(join(dir, "state"));
  writeFileSync(join(dir, "base.img"), new Uint8Array(1 << 20));
});
afterEach(() => removeDirectory(dir));

function qemuImg(...args: readonly string[]): void {
  expect(Bun.spawnSync(["qemu-img", ...args], { cwd: dir, stderr: "inherit" }).exitCode).toBe(0);
}

/** An image, by its path. */
function create(name: string, ...options: readonly string[]): string {
  qemuImg("create", "-q", "-f", "qcow2", ...options, name, "1M");
  return join(dir, name);
}

/** What a guest that has taken its server over may do. */
function makeName(path: string, backing: string, format = "raw"): void {
  qemuImg("rebase", "-u", "-b", backing, "-F", format, path);
}

async function open(path: string): Promise<Qcow2References | undefined> {
  const fd = openSync(path, "r+");
  try {
    return await expectKnownReferences(notes, path, fd);
  } finally {
    closeSync(fd);
  }
}

/** Why it is not opened: the kind of error, and its message. */
async function refusal(path: string): Promise<string> {
  try {
    await open(path);
  } catch (error) {
    if (error instanceof XentoolError) return `${error.kind}: ${error.message}`;
  }
  return expect.unreachable();
}

/** Opens it, and gives it to a guest's process. */
async function serve(path: string): Promise<void> {
  const references = await open(path);
  if (references === undefined) throw new Error(`${path} names nothing that can be told`);
  noteReferences(notes, path, statSync(path), references);
}

const noteFiles = (): string[] => readdirSync(notes).map((name) => join(notes, name));

describe("an image that was served", () => {
  test("and names the same, or less, is opened", async () => {
    const image = create("a", "-b", "base.img", "-F", "raw");
    await serve(image);
    expect(await open(image)).toEqual({ backing: "base.img", backingFormat: "raw" });
    qemuImg("rebase", "-u", "-b", "", image);
    await serve(image);
    expect(await open(image)).toEqual({});
    // What it has lost is new again.
    makeName(image, "base.img");
    expect(await refusal(image)).toContain("names backing file base.img (raw), but named no other file");
  });

  test("and names another file is refused, until the note is removed", async () => {
    const [image, other] = [create("a"), create("b")];
    await serve(image);
    await serve(other);
    makeName(image, "/etc/hostname");
    const reason = await refusal(image);
    expect(reason).toStartWith(
      `environment: ${image} names backing file /etc/hostname (raw), but named no other file when it was last opened for a guest`,
    );
    expect(await open(other)).toEqual({});
    const [, note = ""] = /remove (\S+)$/.exec(reason) ?? [];
    expect(noteFiles()).toContain(note);
    rmSync(note);
    expect(await open(image)).toEqual({ backing: "/etc/hostname", backingFormat: "raw" });
  });

  test("and names a data file is refused", async () => {
    const image = create("a");
    await serve(image);
    qemuImg("create", "-q", "-f", "qcow2", "-o", "data_file=d", "with", "1M");
    writeFileSync(image, readFileSync(join(dir, "with")));
    expect(await refusal(image)).toContain("names data file d, but named no other file");
  });

  test("and has a header that only QEMU may understand is refused", async () => {
    const image = create("a");
    await serve(image);
    const bytes = readFileSync(image);
    bytes.writeUInt32BE(9, 4);
    writeFileSync(image, bytes);
    expect(await refusal(image)).toContain(
      `${image} has no header of a qcow2 any more, but named no other file`,
    );
  });

  test("is known by what it is, not by its name", async () => {
    const image = create("a");
    await serve(image);
    makeName(image, "/etc/hostname");
    symlinkSync("a", join(dir, "link"));
    expect(await refusal(join(dir, "link"))).toContain("named no other file");
    // A copy is another image: nobody's server had that open.
    copyFileSync(image, join(dir, "copy"));
    expect(await open(join(dir, "copy"))).toEqual({ backing: "/etc/hostname", backingFormat: "raw" });
  });

  test("below another one is looked at, too, as far as QEMU would go", async () => {
    const base = create("base.qcow2");
    await serve(base);
    create("middle", "-b", "base.qcow2", "-F", "qcow2");
    const top = create("top", "-b", `file:${join(dir, "middle")}`, "-F", "qcow2");
    expect(await open(top)).toMatchObject({ backingFormat: "qcow2" });
    makeName(base, "/etc/hostname");
    expect(await refusal(top)).toContain(
      `${dir}/base.qcow2 names backing file /etc/hostname (raw), but named`,
    );
    // As a raw disk it names nothing.
    expect(await open(create("raw", "-b", "base.qcow2", "-F", "raw"))).toMatchObject({
      backingFormat: "raw",
    });
  });
});

test("backing files that are missing, no files, elsewhere, or one another's are up to QEMU", async () => {
  const image = create("a");
  expect(Bun.spawnSync(["mkfifo", join(dir, "pipe")]).exitCode).toBe(0);
  for (const name of ["missing", ".", "pipe", "nbd://127.0.0.1:1/x", "json:{}", "a"]) {
    makeName(image, name, "qcow2");
    expect(await open(image)).toEqual({ backing: name, backingFormat: "qcow2" });
  }
});

test("what is no qcow2 is up to QEMU", async () => {
  for (const content of ["", "QFI\xfb", "x".repeat(1000)]) {
    writeFileSync(join(dir, "a"), content, "latin1");
    expect(await open(join(dir, "a"))).toBeUndefined();
  }
  expect(existsSync(notes)).toBe(false);
});

test("a note of a file that is gone does not count for the next one with its number", async () => {
  const image = create("a");
  await serve(image);
  const [note = ""] = noteFiles();
  makeName(image, "/etc/hostname");
  const noted = JSON.parse(readFileSync(note, "utf8")) as object;
  // Where a file system does not tell when a file was made, it counts.
  writeFileSync(note, JSON.stringify({ ...noted, birthMs: 0 }));
  expect(await refusal(image)).toContain("named no other file");
  writeFileSync(note, JSON.stringify({ ...noted, birthMs: 1 }));
  expect(await open(image)).toMatchObject({ backing: "/etc/hostname" });
});

test("a note that cannot be read is named", async () => {
  const image = create("a");
  await serve(image);
  const [note = ""] = noteFiles();
  writeFileSync(note, "{");
  expect(await refusal(image)).toContain(`cannot read ${note}`);
});

test("notes are for us alone, and of images that were opened last", async () => {
  const image = create("a");
  await serve(image);
  const [note = ""] = noteFiles();
  expect([statSync(notes).mode & 0o777, statSync(note).mode & 0o777]).toEqual([0o700, 0o600]);
  for (let old = 1; old <= NOTES_MAX; old++) {
    writeFileSync(join(notes, `file-0-${old}`), "{}");
    utimesSync(join(notes, `file-0-${old}`), old, old);
  }
  await serve(image);
  const left = noteFiles();
  expect(left).toHaveLength(NOTES_MAX);
  expect(left).toContain(note);
  expect(left).not.toContain(join(notes, "file-0-1"));
  expect(left).toContain(join(notes, "file-0-2"));
});

test("notes that cannot be written are an error", () => {
  writeFileSync(notes, "");
  const fd = openSync(join(dir, "base.img"), "r");
  try {
    expect(() => noteReferences(notes, "a", fstatSync(fd), {})).toThrow("EEXIST");
  } finally {
    closeSync(fd);
  }
});
