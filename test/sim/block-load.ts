// A load on a disk that checks what it reads, for tests of what happens to a disk meanwhile.
import type { BlockFrontend } from "./block-frontend.ts";
import type { Random } from "../support/random.ts";

/** Of a disk. Each has one operation at a time, so that no two overlap. */
const PARTS = 16;

/** Writes, reads and flushes at random, every part of the disk at the same time, until `isOver`; against a copy. */
export async function compareUnderLoad(
  frontend: Pick<BlockFrontend, "read" | "write" | "flush">,
  copy: Buffer,
  random: Random,
  isOver: () => boolean,
): Promise<void> {
  const part = copy.length / PARTS;
  await Promise.all(
    Array.from({ length: PARTS }, async (_, index) => {
      do {
        const offset = index * part + random.below(part / 1024) * 512;
        const end = offset + 512 * (1 + random.below(((index + 1) * part - offset) / 512));
        if (random.chance(0.5)) {
          copy.fill(random.below(256), offset, end);
          await frontend.write(offset, copy.subarray(offset, end));
          if (random.chance(0.2)) await frontend.flush();
        } else if (
          Buffer.compare(await frontend.read(offset, end - offset), copy.subarray(offset, end)) !== 0
        )
          throw new Error(`${end - offset} bytes at ${offset} are not what was written`);
      } while (!isOver());
    }),
  );
}
