// An image that is open, together with what has to be ended to close it.
import { closeImage, type FileImage, type Image } from "../image.ts";
import type { OnTrouble } from "../program/program.ts";

/**
 * Begins another connection to the server of an image: a descriptor, or -errno. `anew`: the server was sent changes
 * that it has not replied to. If it is a program of ours, it has ended before, and another one is started.
 */
export type Dial = (anew: boolean) => Promise<number>;

export interface OpenedImage extends AsyncDisposable {
  readonly image: Image;
  /**
   * For another process that uses it: the open image, or our claim to its export, so that nobody else gets it while
   * that process lives. A program's image is its alone, and the program has our lock.
   */
  readonly handedOver: readonly number[];
  /** Without it, the image's address is enough. */
  readonly dial?: Dial | undefined;
  /** Where to report what is wrong with the program that serves the image to us. */
  reportTo?(onTrouble: OnTrouble): void;
}

/** One that needs no program. */
export function openedImage(image: FileImage, close = async () => closeImage(image)): OpenedImage {
  return { image, handedOver: [image.fd, ...image.alsoHeld], [Symbol.asyncDispose]: close };
}
