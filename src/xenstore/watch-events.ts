// Watch events on their way to the watch's callback. A guest can change its nodes as fast as it likes, so events wait
// in a set, at most one per path; past a limit they become one event for the watched path itself (XSA-349: unbounded
// event queues exhausted the memory of backends).
import { describeError } from "../core/errors.ts";
import { escapeText, moduleLogger } from "../core/log.ts";
import { PENDING_PATHS_MAX } from "./bounds.ts";

/** Called for each event with the path that changed, one call at a time per watch. */
export type WatchCallback = (path: string) => void | Promise<void>;

const logger = moduleLogger("xenstore");

export class WatchEvents {
  readonly #path: string;
  readonly #callback: WatchCallback;
  #pending = new Set<string>();
  #running = false;
  #stopped = false;

  constructor(path: string, callback: WatchCallback) {
    this.#path = path;
    this.#callback = callback;
  }

  /** Number of paths waiting for the callback. */
  get pendingCount(): number {
    return this.#pending.size;
  }

  add(path: string): void {
    if (this.#stopped) return;
    if (this.#pending.size >= PENDING_PATHS_MAX) this.#pending = new Set([this.#path]);
    else this.#pending.add(path);
    if (!this.#running) void this.#run();
  }

  /** Starts no further callbacks. */
  stop(): void {
    this.#stopped = true;
    this.#pending.clear();
  }

  async #run(): Promise<void> {
    this.#running = true;
    await Promise.resolve();
    for (let path = this.#take(); path !== undefined; path = this.#take()) {
      try {
        await this.#callback(path);
      } catch (error) {
        if (!this.#stopped) logger.error(`watch of ${escapeText(this.#path)}: ${describeError(error)}`);
      }
    }
    this.#running = false;
  }

  #take(): string | undefined {
    const { value, done } = this.#pending.values().next();
    if (done === true) return undefined;
    this.#pending.delete(value);
    return value;
  }
}
