// Images that a narrowed unit does not reach are refused with the reason, whatever the kernel would say of them.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { refuseElsewhere } from "../../src/blkback/image/image-places.ts";
import type { Opener } from "../../src/block/image/program.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

let dir: string;
let images: string;

beforeEach(() => {
  dir = temporaryDirectory();
  images = join(dir, "images");
  for (const directory of ["images", "images/deep", "images-of-others"]) mkdirSync(join(dir, directory));
  for (const file of ["images/a.img", "images/deep/b.img", "images-of-others/c.img", "d.img"])
    writeFileSync(join(dir, file), "");
  symlinkSync(images, join(dir, "link"));
  symlinkSync("../d.img", join(images, "to-d.img"));
  symlinkSync("/nowhere/x.img", join(images, "to-nowhere.img"));
});

afterEach(() => removeDirectory(dir));

const OUT_OF_REACH = "is out of reach of this service";
const reach = (source: string, places: readonly string[], opener?: Opener): void =>
  refuseElsewhere(source, opener, places);

describe("files", () => {
  test.each(["images/a.img", "images/deep/b.img", "link/a.img", "images/none.img"])("%s", (name) => {
    reach(join(dir, name), ["/elsewhere", images]);
    reach(join(dir, name), [images], { format: "qcow2" });
  });

  test.each([
    "d.img",
    "none.img",
    "images-of-others/c.img",
    "images/to-d.img",
    "images/to-nowhere.img",
    "link2/a",
  ])("not %s", (name) => {
    const path = join(dir, name);
    expect(() => reach(path, [images, "/dev", "network"])).toThrow(
      `${path} ${OUT_OF_REACH}, which was installed for images in ${images}, /dev, network alone`,
    );
    expect(() => reach(path, [images], { format: "qcow2" })).toThrow(OUT_OF_REACH);
  });
});

test("names of block devices, by what they lead to", () => {
  // There may be no block device here; one that has gone is below /dev by its name alone.
  reach("/dev/none/disk", ["/dev"]);
  expect(() => reach("/dev/none/disk", [images])).toThrow(OUT_OF_REACH);
});

describe("servers", () => {
  test.each<[string, Opener | undefined]>([
    ["nbd://host/disk", undefined],
    ["nbds://host/disk", undefined],
    ["rbd/vm7", { format: "rbd" }],
  ])("%s is in the network", (source, opener) => {
    reach(source, [images, "network"], opener);
    expect(() => reach(source, [images, "/dev"], opener)).toThrow(OUT_OF_REACH);
  });

  test("those behind a unix socket, and commands, are no images", () => {
    reach("nbd+unix:///disk?socket=/run/nbd", [images]);
    reach("anything", [images], { via: "nbdkit memory 1M" });
  });
});

test("without places, images may be anywhere", () => {
  refuseElsewhere(join(dir, "d.img"));
});
