// What the process of a guest may not open itself, because it is in a jail: `watch` locks its disks, opens their
// images, the connections to their servers and event channels, and hands it the descriptors. The process names a
// device. Which image that has is read from xenstore here.
import { closeSync } from "node:fs";
import type { OpenedImage } from "../../block/image/opened.ts";
import { dialServer } from "../../block/targets/nbd/dial.ts";
import { XentoolError } from "../../core/errors.ts";
import type { LockFile } from "../../native/lock-file.ts";
import type { EventChannels } from "../../platform/platform.ts";
import { failureOf } from "../../plane/protocol.ts";
import type { Answer, Ask, Trouble } from "./messages.ts";

/** What is opened for one guest. The first two also throw when it has no such device for us. */
export interface GuestDevices {
  readonly openImage: (devid: number, stop: AbortSignal) => Promise<OpenedImage>;
  readonly lock: (devid: number) => Promise<LockFile>;
  /** Bound to no domain but this guest. */
  readonly openChannels: () => Pick<EventChannels, "fd" | "close">;
}

/** Sends descriptors to the process, under the number of its question. Throws when it cannot. */
export type SendDescriptors = (fds: readonly number[]) => void;

interface Kept {
  readonly opened: Promise<OpenedImage>;
  readonly stop: AbortController;
  closing?: Promise<void>;
}

/** The images and locks of one process, which are closed when it asks for that, or is gone. */
export class KeptImages {
  readonly #devices: GuestDevices;
  readonly #kept = new Map<number, Kept>();
  readonly #locks = new Map<number, LockFile>();
  #isOver = false;

  constructor(devices: GuestDevices) {
    this.#devices = devices;
  }

  /** Descriptors are sent before the answer is there. */
  async answer(question: Ask, send: SendDescriptors, onTrouble: (it: Trouble) => void): Promise<Answer> {
    const { ask, what, devid } = question;
    try {
      switch (what) {
        case "lock":
          return await this.#answerWithLock(ask, devid, send);
        case "unlock":
          this.#unlock(devid);
          return { ask, descriptors: 0 };
        case "image":
          return await this.#answerWithImage(ask, devid, send, onTrouble);
        case "connection":
          return await this.#answerWithConnection(ask, devid, send);
        case "channels":
          return this.#answerWithChannels(ask, send);
        case "close":
          await this.#close(devid);
          return { ask, descriptors: 0 };
      }
    } catch (error) {
      return { ask, descriptors: 0, failure: failureOf(error) };
    }
  }

  /** Resolves when all images are closed. */
  async close(): Promise<void> {
    this.#isOver = true;
    for (const devid of this.#locks.keys()) this.#unlock(devid);
    await Promise.allSettled([...this.#kept.keys()].map((devid) => this.#close(devid)));
  }

  async #answerWithImage(
    ask: number,
    devid: number,
    send: SendDescriptors,
    onTrouble: (it: Trouble) => void,
  ): Promise<Answer> {
    while (this.#kept.has(devid)) await this.#close(devid);
    if (this.#isOver) throw gone();
    const stop = new AbortController();
    const kept: Kept = { opened: this.#devices.openImage(devid, stop.signal), stop };
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

  async #answerWithLock(ask: number, devid: number, send: SendDescriptors): Promise<Answer> {
    const lock = await this.#devices.lock(devid);
    try {
      if (this.#isOver) throw gone();
      send([lock.fd]);
    } catch (error) {
      lock.release();
      throw error;
    }
    this.#locks.set(devid, lock);
    return { ask, descriptors: 1 };
  }

  #unlock(devid: number): void {
    this.#locks.get(devid)?.release();
    this.#locks.delete(devid);
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

  #answerWithChannels(ask: number, send: SendDescriptors): Answer {
    const channels = this.#devices.openChannels();
    try {
      send([channels.fd]);
      return { ask, descriptors: 1 };
    } finally {
      channels.close();
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

function gone(): XentoolError {
  return new XentoolError("cancelled", "its process is gone");
}
