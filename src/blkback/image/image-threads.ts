// `watch` opens images for all its guests. A file server that is gone, or a disk that cannot be reached, must not keep
// it from the others, but whoever asks such storage for anything waits in the kernel, without end. So a thread of its
// own touches an image first, and last. When one is late, another thread does what comes next.
import { closeImage, type FileImage } from "../../block/image.ts";
import { noteUnused } from "../../block/image/known.ts";
import { unlessAborted } from "../../core/deadline.ts";
import { XentoolError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import { Plane, type SpawnWorker } from "../../plane/plane.ts";

const logger = moduleLogger("block");

/** A thread that takes longer is not waited for by others. */
const LATE_MS = 1000;

export interface ImageThreadOrder {
  readonly order:
    | { readonly type: "reach"; readonly path: string }
    | { readonly type: "close"; readonly image: FileImage; readonly memory: string };
  readonly report: never;
  readonly result: void;
}

export class ImageThreads implements Disposable {
  readonly #spawnWorker: SpawnWorker;
  /** Where it is remembered what images were served raw. */
  readonly #memory: string;
  /** Resolves to the thread that is free, or to undefined: a new one is to be started. */
  #free: Promise<Plane | undefined> = Promise.resolve(undefined);

  constructor(spawnWorker: SpawnWorker, memory: string) {
    this.#spawnWorker = spawnWorker;
    this.#memory = memory;
  }

  /** Starts a thread, so that the first image need not wait for one. That image reports what is lacking. */
  async prepare(): Promise<void> {
    await this.#carryOut({ type: "reach", path: "/" }).catch(() => {});
  }

  /** Resolves when the storage of what is at `path` answers, or has failed. Throws `cancelled` once `stop` fires. */
  async reach(path: string, stop: AbortSignal): Promise<void> {
    const reached = this.#carryOut({ type: "reach", path }, `${path} does not answer`).then(() => true);
    if ((await unlessAborted(reached, stop)) === undefined)
      throw new XentoolError("cancelled", `stopped before ${path} had answered`);
  }

  /** As `closeImage`. */
  async close(image: FileImage): Promise<void> {
    for (const fd of [image.fd, ...image.alsoHeld]) noteUnused(fd);
    const late = `${image.path} does not let itself be closed`;
    // Without a thread, here: it would keep its locks as long as we live.
    const here = (): void => closeImage(image);
    await this.#carryOut({ type: "close", image, memory: this.#memory }, late, here);
  }

  [Symbol.dispose](): void {
    void this.#free.then((plane) => plane?.close());
  }

  #start(instead: (() => void) | undefined): Plane | undefined {
    try {
      return new Plane("images", this.#spawnWorker);
    } catch (error) {
      if (instead === undefined) throw error;
      instead();
      return undefined;
    }
  }

  /**
   * An order that takes long leaves the next one to another thread, and is called `late` in the log. `here` is done
   * instead if no thread can be started.
   */
  async #carryOut(order: ImageThreadOrder["order"], late?: string, here?: () => void): Promise<void> {
    const before = this.#free;
    const next = Promise.withResolvers<Plane | undefined>();
    let isLate = false;
    this.#free = next.promise;
    try {
      const plane = (await before) ?? this.#start(here);
      if (plane === undefined) return;
      const give = (): void => {
        logger.warn(`${late}: waiting`);
        next.resolve(undefined);
        isLate = true;
      };
      const timer = late === undefined ? undefined : setTimeout(give, LATE_MS);
      try {
        await plane.carryOut<ImageThreadOrder>(order);
      } finally {
        clearTimeout(timer);
        if (isLate) plane.close();
        else next.resolve(plane);
      }
    } finally {
      // Without effect, except where no thread could be started.
      next.resolve(undefined);
    }
  }
}
