// What the process of a guest may not open itself, because it is in a jail: `watch` opens the images of its disks and
// the connections to their servers, and hands it the descriptors. The process names a device. Which image that has is
// read from xenstore here.
import { closeSync } from "node:fs";
import type { OpenedImage } from "../../block/image/opened.ts";
import { dialServer } from "../../block/targets/nbd/dial.ts";
import { XentoolError } from "../../core/errors.ts";
import { failureOf } from "../../plane/protocol.ts";
import type { Answer, Ask, Trouble } from "./messages.ts";

/** Opens the image of a device of this guest. Throws also when the guest has no such device for us. */
export type OpenGuestImage = (devid: number, stop: AbortSignal) => Promise<OpenedImage>;

/** To the process, under the number of its question. Throws when they cannot be sent. */
export type SendDescriptors = (fds: readonly number[]) => void;

interface Kept {
  readonly opened: Promise<OpenedImage>;
  readonly stop: AbortController;
  closing?: Promise<void>;
}

/** The images of one process, which are closed when it says so, or is gone. */
export class KeptImages {
  readonly #open: OpenGuestImage;
  readonly #kept = new Map<number, Kept>();
  #isOver = false;

  constructor(open: OpenGuestImage) {
    this.#open = open;
  }

  /** Descriptors are sent before the answer is there. */
  async answer(question: Ask, send: SendDescriptors, onTrouble: (it: Trouble) => void): Promise<Answer> {
    const { ask, what, devid } = question;
    try {
      switch (what) {
        case "image":
          return await this.#answerWithImage(ask, devid, send, onTrouble);
        case "connection":
          return await this.#answerWithConnection(ask, devid, send);
        case "close":
          await this.#close(devid);
          return { ask, descriptors: 0 };
      }
    } catch (error) {
      return { ask, descriptors: 0, failure: failureOf(error) };
    }
  }

  /** Resolves when all are closed. */
  async close(): Promise<void> {
    this.#isOver = true;
    await Promise.allSettled([...this.#kept.keys()].map((devid) => this.#close(devid)));
  }

  async #answerWithImage(
    ask: number,
    devid: number,
    send: SendDescriptors,
    onTrouble: (it: Trouble) => void,
  ): Promise<Answer> {
    while (this.#kept.has(devid)) await this.#close(devid);
    if (this.#isOver) throw new XentoolError("cancelled", "its process is gone");
    const stop = new AbortController();
    const kept: Kept = { opened: this.#open(devid, stop.signal), stop };
    this.#kept.set(devid, kept);
    try {
      const opened = await kept.opened;
      const { image, handedOver: fds } = opened;
      if (fds.length > 0) send(fds);
      opened.reportTo?.((why) => onTrouble({ devid, why: why ?? null }));
      return { ask, descriptors: fds.length, image };
    } catch (error) {
      await this.#close(devid);
      throw error;
    }
  }

  async #answerWithConnection(ask: number, devid: number, send: SendDescriptors): Promise<Answer> {
    const opened = await this.#kept.get(devid)?.opened;
    if (opened?.image.kind !== "nbd") throw new XentoolError("protocol", "there is no server to connect to");
    const fd = await dialServer(opened.image.address);
    if (fd < 0) return { ask, descriptors: 0, errno: fd };
    try {
      send([fd]);
      return { ask, descriptors: 1 };
    } finally {
      closeSync(fd);
    }
  }

  async #close(devid: number): Promise<void> {
    const kept = this.#kept.get(devid);
    if (kept === undefined) return;
    kept.stop.abort();
    kept.closing ??= this.#dispose(devid, kept);
    await kept.closing;
  }

  async #dispose(devid: number, { opened }: Kept): Promise<void> {
    try {
      await (await opened.catch(() => undefined))?.[Symbol.asyncDispose]();
    } finally {
      this.#kept.delete(devid);
    }
  }
}
