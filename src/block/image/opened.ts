// An image that is open, together with what has to be ended to close it.
import { closeImage, type Image } from "../image.ts";
import type { OnTrouble } from "../program/program.ts";

export interface OpenedImage extends AsyncDisposable {
  readonly image: Image;
  /**
   * Begins another connection to the server of the image: a descriptor, or -errno. Without it, the image's address is
   * enough.
   */
  readonly dial?: (() => Promise<number>) | undefined;
  /** Where to report what is wrong with the program that serves the image to us. */
  reportTo?(onTrouble: OnTrouble): void;
}

/** One that needs no program. */
export function openedImage(image: Image): OpenedImage {
  return { image, [Symbol.asyncDispose]: async () => closeImage(image) };
}
