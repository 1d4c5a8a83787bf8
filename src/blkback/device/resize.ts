// Resizes a disk to the current size of its image: the toolstack asks through one key of the device, and the server
// that watches it reports the outcome through another.
import { randomUUID } from "node:crypto";
import { currentSizeBytes, type Image } from "../../block/image.ts";
import { parseDecimal } from "../../core/types.ts";
import { SECTOR_SIZE } from "../../protocol/blkif.ts";
import type { WaitOptions, Xenstore } from "../../xenstore/client.ts";
import { backendDir, type DeviceAddress } from "../address.ts";
import type { Keys } from "./backend-directory.ts";
import type { OfferedDisk } from "../data-plane/requests.ts";
import { askServer } from "../toolstack.ts";

/** In place of a size that is not known. */
const UNKNOWN = "unknown";
/** Written by whoever asks, with a token that the answer repeats. */
const ASKED_KEY = "xentool-resize";
/** Written by the server: that token, and both sizes. */
const ANSWER_KEY = "xentool-resized";

export interface Resize {
  /** The disk's former size in sectors of 512 bytes. */
  readonly before: number;
  /**
   * The image's size in the same sectors. If it is 0, the disk stays as it is, and if it is null: not known until the
   * disk is served anew.
   */
  readonly after: number | null;
}

/** Has the process that serves the device check its image's size again, and waits for its answer. */
export async function resizeDevice(
  xenstore: Xenstore,
  address: DeviceAddress,
  wait: WaitOptions = {},
): Promise<Resize> {
  const word = randomUUID();
  const parse = (text: string | null): Resize | undefined => parseAnswer(text, word);
  return askServer(xenstore, address, { [ASKED_KEY]: word }, ANSWER_KEY, parse, wait);
}

function parseAnswer(text: string | null, word: string): Resize | undefined {
  const [answered, ...sizes] = (text ?? "").split(" ");
  const [before, after] = sizes.map((size) =>
    size === UNKNOWN ? null : parseDecimal(size, Number.MAX_SAFE_INTEGER),
  );
  return answered !== word || typeof before !== "number" || after === undefined
    ? undefined
    : { before, after };
}

/** Requests to resize a device, as its server follows them. */
export class ResizeKeys {
  readonly #xenstore: Xenstore;
  readonly #address: DeviceAddress;
  readonly #image: Image;
  readonly #disk: OfferedDisk;
  #seen: string | null = null;

  constructor(xenstore: Xenstore, address: DeviceAddress, image: Image, disk: OfferedDisk) {
    this.#xenstore = xenstore;
    this.#address = address;
    this.#image = image;
    this.#disk = disk;
  }

  /**
   * Changes the disk if a resize is asked for. Returns the sizes, and the keys that answer the request. Once `isOver`,
   * the image may be closed.
   */
  async look(isOver: () => boolean): Promise<(Resize & { answer: Keys }) | undefined> {
    const word = await this.#xenstore.tryRead(`${backendDir(this.#address)}/${ASKED_KEY}`);
    if (isOver() || word === null || word === this.#seen) return undefined;
    this.#seen = word;
    const before = this.#disk.sectors512;
    const sizeBytes = currentSizeBytes(this.#image, this.#disk.logicalSectorBytes);
    const after = sizeBytes === null ? null : sizeBytes / SECTOR_SIZE;
    if (after !== null && after > 0) this.#disk.sectors512 = after;
    return { before, after, answer: { [ANSWER_KEY]: `${word} ${before} ${after ?? UNKNOWN}` } };
  }
}

export interface ResizeOutcome {
  readonly text: string;
  /** The guest may miss data. */
  readonly warns: boolean;
  /** The disk has its image's size now. */
  readonly applied: boolean;
}

export function describeResize({ before, after }: Resize): ResizeOutcome {
  if (after === null)
    return {
      text: `the disk stays as it is, ${before} sectors: that of an NBD server or program gets its new size when it is served anew`,
      warns: true,
      applied: false,
    };
  if (after === before)
    return {
      text: `the disk has its image's size already, ${after} sectors`,
      warns: false,
      applied: true,
    };
  if (after === 0)
    return {
      text: `the image is empty now; the disk stays as it is, ${before} sectors`,
      warns: true,
      applied: false,
    };
  const change = `from ${before} to ${after} sectors`;
  if (after > before) return { text: `the disk grew ${change}`, warns: false, applied: true };
  return {
    text: `the disk shrank ${change}: data beyond the new end is lost, and the guest may still need it`,
    warns: true,
    applied: true,
  };
}
