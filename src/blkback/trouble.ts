// Reports once what keeps a device from being served for now: in the log, and in the device's error node.
import { describeError } from "../core/errors.ts";
import { escapeControls, moduleLogger } from "../core/log.ts";
import type { BackendDirectory } from "./backend-directory.ts";

const logger = moduleLogger("blkback");

export class Trouble {
  readonly #name: string;
  readonly #directory: BackendDirectory;
  #said: string | undefined;

  constructor(name: string, directory: BackendDirectory) {
    this.#name = name;
    this.#directory = directory;
  }

  /** Reports `error`, unless it is the one reported last. */
  async say(error: unknown): Promise<void> {
    const reason = describeError(error);
    if (reason === this.#said) return;
    this.#said = reason;
    logger.error(`${this.#name}: ${reason}; it is tried again until it succeeds`);
    await this.#directory.write({}, escapeControls(reason));
  }

  /** The device is served now: takes back the report. */
  async over(): Promise<void> {
    if (this.#said === undefined) return;
    this.#said = undefined;
    logger.info(`${this.#name}: it is served now`);
    await this.#directory.clearError();
  }
}
