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

/**
 * Sends the answer to a question, and descriptors with it: one right after the other, because they are taken in the
 * order of the answers. Throws when the descriptors cannot be sent; then there is no answer yet.
 */
export type Reply = (fds: readonly number[], more?: Omit<Answer, "ask" | "descriptors">) => void;

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

  /** Replies once. */
  async answer({ what, devid }: Ask, reply: Reply, onTrouble: (it: Trouble) => void): Promise<void> {
    try {
      switch (what) {
        case "lock":
          return await this.#answerWithLock(devid, reply);
        case "unlock":
          this.#unlock(devid);
          return reply([]);
        case "image":
          return await this.#answerWithImage(devid, reply, onTrouble);
        case "connection":
        case "anew":
          return await this.#answerWithConnection(devid, what === "anew", reply);
        case "channels":
          return this.#answerWithChannels(reply);
        case "close":
          await this.#close(devid);
          return reply([]);
      }
    } catch (error) {
      reply([], { failure: failureOf(error) });
    }
  }

  /** Resolves when all images are closed. */
  async close(): Promise<void> {
    this.#isOver = true;
    for (const devid of this.#locks.keys()) this.#unlock(devid);
    await Promise.allSettled([...this.#kept.keys()].map((devid) => this.#close(devid)));
  }

  async #answerWithImage(devid: number, reply: Reply, onTrouble: (it: Trouble) => void): Promise<void> {
    while (this.#kept.has(devid)) await this.#close(devid);
    if (this.#isOver) throw gone();
    const stop = new AbortController();
    const kept: Kept = { opened: this.#devices.openImage(devid, stop.signal), stop };
    this.#kept.set(devid, kept);
    try {
      const opened = await kept.opened;
      reply(opened.handedOver, { image: opened.image });
      opened.reportTo?.((why) => onTrouble({ devid, why: why ?? null }));
    } catch (error) {
      await this.#close(devid);
      throw error;
    }
  }

  async #answerWithLock(devid: number, reply: Reply): Promise<void> {
    const lock = await this.#devices.lock(devid);
    try {
      if (this.#isOver) throw gone();
      reply([lock.fd]);
    } catch (error) {
      lock.release();
      throw error;
    }
    this.#locks.set(devid, lock);
  }

  #unlock(devid: number): void {
    this.#locks.get(devid)?.release();
    this.#locks.delete(devid);
  }

  async #answerWithConnection(devid: number, anew: boolean, reply: Reply): Promise<void> {
    const opened = await this.#kept.get(devid)?.opened;
    if (opened?.image.kind !== "nbd") throw new XentoolError("protocol", "there is no server to connect to");
    const { image, dial = () => dialServer(image.address) } = opened;
    const fd = await dial(anew);
    if (fd < 0) return reply([], { errno: fd });
    try {
      reply([fd]);
    } finally {
      closeSync(fd);
    }
  }

  #answerWithChannels(reply: Reply): void {
    const channels = this.#devices.openChannels();
    try {
      reply([channels.fd]);
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
