// A load on a disk that checks what it reads, for tests of what happens to a disk meanwhile.
import type { BlockFrontend } from "./block-frontend.ts";
import type { Random } from "../support/random.ts";

/** Of a disk. Each has one operation at a time, so that no two overlap. */
const PARTS = 16;

/**
 * Writes, reads and flushes at random, every part of the disk at the same time, until `isOver`; against a copy. `trims`
 * is the share of operations that trim; the copy gets what that has left.
 */
export async function compareUnderLoad(
  frontend: Pick<BlockFrontend, "read" | "write" | "flush" | "discard">,
  copy: Buffer,
  random: Random,
  isOver: () => boolean,
  trims = 0,
): Promise<void> {
  const part = copy.length / PARTS;
  await Promise.all(
    Array.from({ length: PARTS }, async (_, index) => {
      do {
        const offset = index * part + random.below(part / 1024) * 512;
        const end = offset + 512 * (1 + random.below(((index + 1) * part - offset) / 512));
        if (trims > 0 && random.chance(trims)) {
          // Servers trim whole blocks of theirs, so a whole part makes sure that there is one.
          const [from, to] = random.chance(0.5) ? [offset, end] : [index * part, (index + 1) * part];
          await trim(frontend, copy, from, to);
        } else if (random.chance(0.5)) {
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

/** Each sector becomes zeroes, or stays. */
async function trim(
  frontend: Pick<BlockFrontend, "read" | "discard">,
  copy: Buffer,
  from: number,
  to: number,
): Promise<void> {
  await frontend.discard(from, to - from);
  const left = await frontend.read(from, to - from);
  for (let at = 0; at < left.length; at += 512) {
    const sector = left.subarray(at, at + 512);
    const before = copy.subarray(from + at, from + at + 512);
    if (sector.some((byte) => byte !== 0) && Buffer.compare(sector, before) !== 0)
      throw new Error(`512 bytes at ${from + at} are neither zeroes nor what was there before a trim`);
  }
  copy.set(left, from);
}
