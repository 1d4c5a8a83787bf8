// Reports once what keeps a device from being served: in the log, and in the device's error node, which goes when its
// reason does.
import { describeError, XentoolError } from "../../core/errors.ts";
import { escapeControls, moduleLogger } from "../../core/log.ts";
import type { BackendDirectory } from "./backend-directory.ts";
import type { Held } from "../data-plane/blkback-orders.ts";

const logger = moduleLogger("blkback");

export class Trouble {
  readonly #name: string;
  readonly #directory: BackendDirectory;
  /** What the log said last. */
  #said: string | undefined;
  /** The error node may be there: an earlier server's, too. */
  #isWritten = true;
  /** Reports are written one after the other, so that the last one is what stays. */
  #turn: Promise<void> = Promise.resolve();

  constructor(name: string, directory: BackendDirectory) {
    this.#name = name;
    this.#directory = directory;
  }

  /** Reports `error`, which is tried again, unless it is the one reported last. */
  say(error: unknown): Promise<void> {
    const reason = describeError(error);
    return this.#next(() => this.#say(reason, `${reason}; it is tried again until it succeeds`));
  }

  /**
   * Reports that the disk waits for the server of its image, has waited for long enough, or need not wait any more.
   * Never throws: without xenstored it ends anyway.
   */
  readonly held = ({ why, isOver }: Held): void => {
    void this.#held(why, isOver).catch(() => {});
  };

  #held(why: string | null, isOver: boolean): Promise<void> {
    if (why === null) return this.over();
    if (!isOver) return this.say(new XentoolError("io", `it waits for its NBD server: ${why}`));
    const reason = `its NBD server was away for too long, and its requests fail until the guest reconnects: ${why}`;
    return this.#next(() => this.#say(reason, reason));
  }

  /** The ring is refused: logs why. Returns what the error node is to say, for `#directory.write`. */
  refused(error: unknown): string {
    const reason = escapeControls(describeError(error));
    logger.error(`${this.#name}: ${reason}`);
    this.#isWritten = true;
    return reason;
  }

  /** Takes back the report, because nothing is left of the device. Never throws: xenstored may be gone. */
  ended(): Promise<void> {
    return this.#next(() => this.#clear()).catch(() => {});
  }

  /** The device is served now: takes back the report. */
  over(): Promise<void> {
    return this.#next(() => this.#over());
  }

  #next(step: () => Promise<void>): Promise<void> {
    const done = this.#turn.then(step);
    this.#turn = done.catch(() => {});
    return done;
  }

  /** `reason` is for the error node, `said` for the log. */
  async #say(reason: string, said: string): Promise<void> {
    if (said === this.#said) return;
    this.#said = said;
    this.#isWritten = true;
    logger.error(`${this.#name}: ${said}`);
    await this.#directory.write({}, escapeControls(reason));
  }

  async #over(): Promise<void> {
    // Whoever reads of the trouble wants to read of its end.
    if (this.#said !== undefined) logger.warn(`${this.#name}: it is served now`);
    this.#said = undefined;
    await this.#clear();
  }

  async #clear(): Promise<void> {
    if (!this.#isWritten) return;
    this.#isWritten = false;
    await this.#directory.clearError();
  }
}
