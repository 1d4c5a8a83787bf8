// The locks and images of a guest's disks as its process gets them: `watch` opens them (kept-images.ts), and their
// descriptors come through a socket beside the answers.
import { closeSync } from "node:fs";
import type { Image } from "../../block/image.ts";
import { NO_CONNECTION } from "../../block/targets/nbd/dial.ts";
import type { OpenedImage } from "../../block/image/opened.ts";
import { onAbort } from "../../core/deadline.ts";
import { XentoolError } from "../../core/errors.ts";
import { receiveDescriptors } from "../../native/descriptors.ts";
import { asError } from "../../plane/protocol.ts";
import type { OpenDeviceImage } from "../image/watched-image.ts";
import type { LockDevice } from "../watch/watch.ts";
import type { Answer, Ask, Trouble } from "./messages.ts";

/** The `reason` when descriptors were sent that this process could not take. */
const SHORT = "short of descriptors";

type Taken = Answer & { readonly fds: readonly number[] };

export class AskedImages {
  readonly #socket: number;
  readonly #say: (ask: Ask) => void;
  readonly #waiting = new Map<number, PromiseWithResolvers<Taken>>();
  readonly #troubles = new Map<number, (why: string | undefined) => void>();
  #asked = 0;
  #isOver = false;

  /** `say` brings a question to `watch`; the descriptors come through `socket`. */
  constructor(socket: number, say: (ask: Ask) => void) {
    this.#socket = socket;
    this.#say = say;
  }

  /** When `stop` fires, `watch` closes the image first, and answers that the opening was cancelled. */
  readonly open: OpenDeviceImage = async ({ devid }, stop) => {
    if (stop.aborted) throw new XentoolError("cancelled", "stopped before the image was asked for");
    using _ = onAbort(stop, () => this.#giveUp("close", devid));
    const answer = await this.#askToKeep("image", "close", devid);
    const { image } = answer;
    if (image === undefined) throw new XentoolError("bug", "an answer without an image");
    const [fd, ...alsoHeld] = answer.fds;
    return this.#opened(devid, fd === undefined ? image : withOurs(image, fd, alsoHeld), answer.fds);
  };

  readonly lock: LockDevice = async ({ devid }) => {
    const { fds } = await this.#askToKeep("lock", "unlock", devid);
    return {
      release: async () => {
        for (const fd of fds) closeSync(fd);
        await this.#giveUp("unlock", devid);
      },
    };
  };

  /** Event channels for one connection of a device; the caller's to close. */
  readonly channels = async (devid: number): Promise<number> => {
    const [fd] = (await this.#ask("channels", devid)).fds;
    if (fd === undefined) throw new XentoolError("bug", "an answer without event channels");
    return fd;
  };

  /** Called for each answer in the order in which they come, because the descriptors have the same. */
  take(answer: Answer): void {
    const fds = answer.descriptors > 0 ? receiveDescriptors(this.#socket, answer.ask) : [];
    const reply = this.#waiting.get(answer.ask);
    this.#waiting.delete(answer.ask);
    if (answer.failure !== undefined) reply?.reject(asError(answer.failure));
    else if (fds.length === answer.descriptors) reply?.resolve({ ...answer, fds });
    else {
      for (const fd of fds) closeSync(fd);
      const message = "this process has no more descriptors to open files";
      reply?.reject(new XentoolError("environment", message, { reason: SHORT }));
    }
  }

  /** Something is wrong with the program that serves a disk's image, or no longer. */
  trouble({ devid, why }: Trouble): void {
    this.#troubles.get(devid)?.(why ?? undefined);
  }

  /** Nobody will answer any more. */
  end(): void {
    this.#isOver = true;
    for (const { reject } of this.#waiting.values()) reject(gone());
    this.#waiting.clear();
  }

  #opened(devid: number, image: Image, handedOver: readonly number[]): OpenedImage {
    return {
      image,
      handedOver,
      dial: async (anew) => {
        const what = anew ? "anew" : "connection";
        const { errno = NO_CONNECTION, fds: dialled } = await this.#ask(what, devid);
        return dialled[0] ?? errno;
      },
      reportTo: (onTrouble) => void this.#troubles.set(devid, onTrouble),
      [Symbol.asyncDispose]: async () => {
        this.#troubles.delete(devid);
        for (const fd of handedOver) closeSync(fd);
        await this.#giveUp("close", devid);
      },
    };
  }

  async #askToKeep(what: "lock" | "image", undo: "unlock" | "close", devid: number): Promise<Taken> {
    try {
      return await this.#ask(what, devid);
    } catch (error) {
      // Then `watch` has it. With any other error, a lock that it has was taken before, and is in use.
      if (error instanceof XentoolError && error.context["reason"] === SHORT) await this.#giveUp(undo, devid);
      throw error;
    }
  }

  /** Without `watch` there is nothing to give up. */
  async #giveUp(what: "unlock" | "close", devid: number): Promise<void> {
    await this.#ask(what, devid).catch(() => {});
  }

  async #ask(what: Ask["what"], devid: number): Promise<Taken> {
    if (this.#isOver) throw gone();
    const ask = this.#asked++;
    const reply = Promise.withResolvers<Taken>();
    this.#waiting.set(ask, reply);
    this.#say({ ask, what, devid });
    return reply.promise;
  }
}

/** The image with the numbers that its descriptors have in this process. */
function withOurs(image: Image, fd: number, alsoHeld: readonly number[]): Image {
  if (image.kind === "file") return { ...image, fd, alsoHeld };
  return image.inPlace === undefined ? image : { ...image, inPlace: { ...image.inPlace, fd } };
}

function gone(): XentoolError {
  return new XentoolError("cancelled", "`watch` is gone");
}
