// A disk's way to an NBD server that is reached by TLS: a thread of its own that encrypts, so that neither the data
// plane nor the control side does. The data plane connects to a socket in a directory that only we may enter.
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { claimFor } from "../../block/image/claim.ts";
import { claimExport, keysOfExport } from "../../block/image/claim-export.ts";
import { openNbdImage, type Line, type NbdImageOptions } from "../../block/image/nbd.ts";
import type { Ways } from "../../block/image/open.ts";
import type { OpenedImage } from "../../block/image/opened.ts";
import { parseNbdUri } from "../../block/targets/nbd/uri.ts";
import type { SecureAddress } from "../../block/targets/nbd/tls-relay.ts";
import { describeDevice, type DeviceAddress } from "../address.ts";
import { Plane, type SpawnWorker } from "../../plane/plane.ts";

export interface SecureLineOrder {
  readonly order:
    | {
        readonly type: "open";
        /** What its lines in the log are about. */
        readonly name: string;
        readonly path: string;
        readonly to: SecureAddress;
      }
    | { readonly type: "close" };
  readonly report: never;
  readonly result: void;
}

export interface NbdSourceOptions extends Omit<NbdImageOptions, "line"> {
  readonly shared: boolean;
  readonly ways: Ways;
  readonly address: DeviceAddress;
  readonly statsDir: string;
  readonly spawnWorker: SpawnWorker;
}

/** Claims and opens the export at `uri` for the device, whose lock the caller has. */
export async function openNbdSource(uri: string, options: NbdSourceOptions): Promise<OpenedImage> {
  const { readOnly, shared, ways, address, statsDir, spawnWorker } = options;
  await using undo = new AsyncDisposableStack();
  const claim = claimFor(readOnly, shared);
  const keys = await keysOfExport(parseNbdUri(uri));
  const claimed = undo.use(
    claimExport(statsDir, keys, { name: uri, claim, user: describeDevice(address), ways }),
  );
  const line = new SecureLine(statsDir, address, spawnWorker);
  undo.defer(() => line.close());
  const image = await openNbdImage(uri, { ...options, line });
  const kept = undo.move();
  return { image, handedOver: claimed.fds, [Symbol.asyncDispose]: () => kept.disposeAsync() };
}

/** Where the way of a device to its server is, beside the device's lock. */
export function secureLineDir(
  statsDir: string,
  { frontend, devid }: Pick<DeviceAddress, "frontend" | "devid">,
): string {
  return join(statsDir, `${frontend}-${devid}.tls`);
}

export class SecureLine implements Line {
  readonly #name: string;
  readonly #dir: string;
  readonly #spawnWorker: SpawnWorker;
  #plane: Plane | undefined;

  /** Nothing is there before `open`. The caller has the device's lock: its directory in `dir` is made anew. */
  constructor(dir: string, address: DeviceAddress, spawnWorker: SpawnWorker) {
    this.#name = describeDevice(address);
    this.#dir = secureLineDir(dir, address);
    this.#spawnWorker = spawnWorker;
  }

  /** Returns the path of a socket behind which the server is; why it cannot be reached is said there. */
  async open(to: SecureAddress): Promise<string> {
    rmSync(this.#dir, { recursive: true, force: true });
    mkdirSync(this.#dir, { recursive: true, mode: 0o700 });
    const path = join(this.#dir, "nbd.sock");
    this.#plane = new Plane("nbd-tls", this.#spawnWorker);
    await this.#plane.carryOut<SecureLineOrder>({ type: "open", name: this.#name, path, to });
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
