// Flushes, a round at a time. A flush vouches for what its own connection was told is done, so a round asks every
// connection that has replied to changes since it was last asked: a server may be another one behind each of them.
import { NBD_CMD_FLUSH } from "../../../protocol/nbd.ts";
import type { NbdLink } from "./link.ts";
import { INTERNAL, type NbdRequests } from "./requests.ts";

const EIO = -5;
const EOPNOTSUPP = -95;

/** Called when a round has ended for the guest's flushes in `slots`. */
export type OnFlushed = (slots: readonly number[], error: number) => void;

export class FlushRounds {
  /** The number of the last round that succeeded, and of the next one. A round vouches for all replies before it. */
  done = 0;
  next = 1;
  /** -errno of a round that failed. A flush after it may succeed and yet vouch for nothing that was before. */
  errno = 0;
  readonly #requests: NbdRequests;
  readonly #link: NbdLink;
  readonly #onFlushed: OnFlushed;
  #asked: number[] = [];
  #served: number[] = [];
  /** Replies that the round waits for. */
  #missing = 0;

  constructor(requests: NbdRequests, link: NbdLink, onFlushed: OnFlushed) {
    this.#requests = requests;
    this.#link = link;
    this.#onFlushed = onFlushed;
  }

  /** Has a round begin for the flush of the guest in `slot`. */
  ask(slot: number): void {
    this.#asked.push(slot);
    this.#begin();
  }

  /** Asks for a round that makes the log of writes shorter. One that is under way may do. */
  want(): void {
    if (this.errno === 0) this.#begin();
  }

  replied(slot: number): void {
    const error = this.#requests.error[slot];
    // A guest would take EOPNOTSUPP to mean that nothing has to be flushed.
    this.errno ||= error === EOPNOTSUPP ? EIO : error;
    this.#requests.release(slot);
    if (--this.#missing > 0) return;
    if (this.errno === 0) this.done = this.next - 1;
    this.#onFlushed(this.#served.splice(0), this.errno);
    if (this.#asked.length > 0) this.#begin();
  }

  /** Ends the round, because the server is gone. Returns the slots of flushes that have to ask again. */
  down(): readonly number[] {
    this.#missing = 0;
    return [...this.#served.splice(0), ...this.#asked.splice(0)];
  }

  #begin(): void {
    if (this.#missing > 0 || !this.#link.isUp) return;
    this.#served = this.#asked.splice(0);
    this.next++;
    const { connections } = this.#link;
    const changed = connections.filter((it) => it.hasChanges);
    const asked = changed.length > 0 ? changed : connections.slice(0, 1);
    this.#missing = asked.length;
    for (const connection of asked) {
      connection.hasChanges = false;
      this.#link.sendOn(connection, this.#requests.take(INTERNAL, NBD_CMD_FLUSH, 0, 0));
    }
  }
}
