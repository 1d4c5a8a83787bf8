// A disk's way to an NBD server that is reached by TLS: a thread of its own that encrypts, so that neither the data
// plane nor the control side does. The data plane connects to a socket in a directory that only we may enter.
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { openNbdImage, type Line, type NbdImageOptions } from "../block/image/nbd.ts";
import type { OpenedImage } from "../block/image/opened.ts";
import type { SecureAddress } from "../block/targets/nbd/tls-relay.ts";
import type { DeviceAddress } from "./address.ts";
import { Plane, type SpawnWorker } from "../plane/plane.ts";

export interface SecureLineOrder {
  readonly order:
    { readonly type: "open"; readonly path: string; readonly to: SecureAddress } | { readonly type: "close" };
  readonly report: never;
  readonly result: void;
}

/** Opens the export at `uri`; the line is closed with it. */
export async function openNbdSource(
  uri: string,
  options: Omit<NbdImageOptions, "line">,
  line: SecureLine,
): Promise<OpenedImage> {
  try {
    const image = await openNbdImage(uri, { ...options, line });
    return { image, [Symbol.asyncDispose]: () => line.close() };
  } catch (error) {
    await line.close();
    throw error;
  }
}

export class SecureLine implements Line {
  readonly #dir: string;
  readonly #spawnWorker: SpawnWorker;
  #plane: Plane | undefined;

  /** Nothing is there before `open`. The caller has the device's lock: its directory in `dir` is made anew. */
  constructor(dir: string, { frontend, devid }: DeviceAddress, spawnWorker: SpawnWorker) {
    this.#dir = join(dir, `${frontend}-${devid}.tls`);
    this.#spawnWorker = spawnWorker;
  }

  /** Returns the path of a socket behind which the server is; why it cannot be reached is said there. */
  async open(to: SecureAddress): Promise<string> {
    rmSync(this.#dir, { recursive: true, force: true });
    mkdirSync(this.#dir, { recursive: true, mode: 0o700 });
    const path = join(this.#dir, "nbd.sock");
    this.#plane = new Plane("nbd-tls", this.#spawnWorker);
    await this.#plane.carryOut<SecureLineOrder>({ type: "open", path, to });
    return path;
  }

  /** Ends all connections. */
  async close(): Promise<void> {
    const plane = this.#plane;
    if (plane === undefined) return;
    this.#plane = undefined;
    try {
      // A thread that is ended does not close its sockets.
      await plane.carryOut<SecureLineOrder>({ type: "close" });
    } finally {
      plane.close();
      rmSync(this.#dir, { recursive: true, force: true });
    }
  }
}
