// The notes of what was served raw, which all processes of a host have in common: nobody tells when an image is gone.
import { expect, test } from "bun:test";
import { mkdirSync, readdirSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { spawnWorker } from "../../cmd/spawn-worker.ts";
import { ImageThreads } from "../../src/blkback/image/image-threads.ts";
import { openImage } from "../../src/block/image.ts";
import { NOTES_MAX } from "../../src/block/image/notes.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

test("of very many notes those stay that were written last", async () => {
  const dir = temporaryDirectory();
  const [memory, image] = [join(dir, "served-raw"), join(dir, "a.img")];
  mkdirSync(memory);
  writeFileSync(image, new Uint8Array(4096));
  for (let old = 1; old <= NOTES_MAX; old++) writeFileSync(join(memory, `device-7-0-diskseq-${old}`), "");
  utimesSync(join(memory, "device-7-0-diskseq-2"), 1, 1);
  const threads = new ImageThreads(spawnWorker, memory);
  await threads.close(openImage(image, { readOnly: false, direct: false, sectorSizeBytes: 512 }));
  threads[Symbol.dispose]();
  const left = readdirSync(memory);
  expect(left).toHaveLength(NOTES_MAX);
  expect(left.filter((name) => name.startsWith("file-"))).toHaveLength(1);
  expect(left).not.toContain("device-7-0-diskseq-2");
  removeDirectory(dir);
});
