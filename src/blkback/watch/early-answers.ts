// Answers the toolstack in time about a disk that is not served yet, nor refused. libxl waits 10 s for state 2 and runs
// our hotplug script only then, but the script waits for the outcome much longer and has libxl print the reason if
// there is one. So when an image is still held, a server is silent, or the guest's process is slow to come on a busy
// machine, state 2 is written ahead. The guest sees a backend that has yet to connect.
import { describeError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import type { Domid } from "../../core/types.ts";
import type { Unwatch, Xenstore } from "../../xenstore/client.ts";
import { backendDir, describeDevice, type DeviceAddress } from "../address.ts";
import { offerIfNew } from "../device/backend-directory.ts";
import { ringKeys } from "../device/features.ts";
import { deviceNamed, namesIn } from "../device/device-directories.ts";
import type { WatchOptions } from "./watch.ts";

const logger = moduleLogger("watch");

/** Half of what libxl waits for (LIBXL_INIT_TIMEOUT, 10 s). */
const ANSWER_MS = 5000;

/** A device, and those of its keys that a toolstack writes when it creates one. */
const NEW_DEVICE = /^\/([0-9]+)\/([0-9]+)(?:\/(?:frontend|params|mode|script))?$/;

export class EarlyAnswers implements AsyncDisposable {
  readonly #xenstore: Xenstore;
  readonly #backend: Domid;
  readonly #options: WatchOptions;
  readonly #root: string;
  /** By path of the backend's directory: devices that were new a moment ago. */
  readonly #timers = new Map<string, ReturnType<typeof setTimeout>>();
  #unwatch: Unwatch | undefined;

  private constructor(backend: Domid, xenstore: Xenstore, options: WatchOptions) {
    this.#backend = backend;
    this.#xenstore = xenstore;
    this.#options = options;
    this.#root = `/local/domain/${backend}/backend/${options.kind}`;
  }

  static async start(backend: Domid, xenstore: Xenstore, options: WatchOptions): Promise<EarlyAnswers> {
    const answers = new EarlyAnswers(backend, xenstore, options);
    answers.#unwatch = await xenstore.watch(answers.#root, (path) => answers.#changed(path));
    return answers;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#unwatch?.();
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
  }

  async #changed(path: string): Promise<void> {
    const match = NEW_DEVICE.exec(path.slice(this.#root.length));
    if (match !== null) this.#expect(match[1], match[2]);
    else if (path === this.#root)
      for (const frontend of await namesIn(this.#xenstore, path))
        for (const devid of await namesIn(this.#xenstore, `${path}/${frontend}`))
          this.#expect(frontend, devid);
  }

  #expect(guest: string, devid: string): void {
    const address = deviceNamed(this.#backend, this.#options.kind, guest, devid);
    if (address === undefined) return;
    const dir = backendDir(address);
    if (this.#timers.has(dir)) return;
    this.#timers.set(
      dir,
      setTimeout(() => {
        this.#timers.delete(dir);
        void this.#answer(address);
      }, ANSWER_MS),
    );
  }

  async #answer(address: DeviceAddress): Promise<void> {
    const { offer, grantMode } = this.#options;
    try {
      const keys = ringKeys({ ...offer, deviceType: "disk" }, grantMode);
      const isNew = await offerIfNew(this.#xenstore, address, keys);
      if (isNew) logger.info(`${describeDevice(address)}: not served yet; the toolstack is told to wait`);
    } catch (error) {
      logger.warn(`${describeDevice(address)}: ${describeError(error)}`);
    }
  }
}
