// A program that serves an image to us by NBD, e.g. qemu-storage-daemon, on a socket that we listen at and hand over.
// It lives as long as we do. When it dies it is started again with the same socket, where connections wait meanwhile.
import { pause } from "../../core/deadline.ts";
import { describeError, XentoolError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import { isListening, listenAt, type UnixListener } from "../../native/unix-listener.ts";
import { HELD } from "../image/open.ts";
import { dialServer } from "../targets/nbd/dial.ts";
import { probeExport } from "../targets/nbd/probe.ts";
import type { NbdAddress } from "../targets/nbd/uri.ts";
import type { ProgramCommand } from "./commands.ts";
import { keepProcess, type Ended, type KeptProcess } from "./keeper.ts";

const logger = moduleLogger("program");

/** Until it is started again: each time twice as long, up to a second if it has served. */
const FIRST_PAUSE_MS = 100;
const SERVED_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 30_000;
/** One that has lived this long is started again at once. */
const STEADY_MS = 10_000;
/** How long whoever asked for a connection waits for the program to accept it, at most. */
const ACCEPTED_MS = 10_000;

export interface ProgramOptions {
  /** For messages: its name, and the disk that it serves. */
  readonly name: string;
  readonly user: string;
  readonly command: ProgramCommand;
  /** Where it is to serve. */
  readonly socket: string;
  /** Descriptors that stay open while anything of it lives, for the locks on them. */
  readonly held: readonly number[];
  /** Resolves to why it must not be started now. */
  readonly whyNot?: (() => Promise<string | undefined>) | undefined;
}

/** Gets what is wrong with the program, and undefined once it serves again. */
export type OnTrouble = (why: string | undefined) => void;

export class NbdProgram {
  /** Where it serves. */
  readonly uri: string;
  readonly #options: ProgramOptions;
  readonly #listener: UnixListener;
  readonly #stop = new AbortController();
  /** Rejects if it ends before it has opened the image. */
  readonly #failed = Promise.withResolvers<never>();
  readonly #over: Promise<void>;
  #argv: readonly string[];
  #process: KeptProcess | undefined;
  #hasOpened = false;
  /** When the last connection was begun that the program may serve; none: -Infinity. */
  #dialledMs = -Infinity;
  #onTrouble: OnTrouble = () => {};
  #trouble: string | undefined;

  /** Throws `environment` while a former one still lives. */
  constructor(options: ProgramOptions) {
    const { socket, name, command } = options;
    this.#options = options;
    this.#argv = command.argv;
    this.uri = `nbd+unix:///?socket=${encodeURIComponent(socket)}`;
    if (isListening(socket))
      throw new XentoolError("environment", `the ${name} of the server before this one still runs`, {
        reason: HELD,
      });
    this.#listener = listenAt(socket);
    this.#failed.promise.catch(() => {});
    this.#over = this.#keep();
  }

  /**
   * The result of `opening`, which asks the program for its export. Throws `io` if the program ends before, and
   * `environment` if there is none.
   */
  async opened<T>(opening: Promise<T>): Promise<T> {
    const result = await Promise.race([opening, this.#failed.promise]);
    this.#hasOpened = true;
    return result;
  }

  reportTo(onTrouble: OnTrouble): void {
    this.#onTrouble = onTrouble;
    if (this.#trouble !== undefined) onTrouble(this.#trouble);
  }

  /**
   * Begins a connection to it: a descriptor, or -errno. `anew`: what it was sent on former ones, and has not replied
   * to, must not be carried out any more. So if it may have been sent something, another one is started.
   */
  async dial(anew: boolean): Promise<number> {
    if (anew && this.#dialledMs > -Infinity) await this.#replace();
    const result = await dialServer(this.#address);
    if (result >= 0) this.#dialledMs = performance.now();
    return result;
  }

  /** Ends the program, which closes the image. Never fails. */
  async close(): Promise<void> {
    this.#stop.abort();
    this.#process?.stop();
    await this.#over;
    this.#listener.close();
  }

  get #address(): NbdAddress {
    return { address: this.#options.socket, port: undefined, exportName: "" };
  }

  /** Resolves when it has ended: one that storage holds up may yet write what it has begun to. */
  async #replace(): Promise<void> {
    const { name, user } = this.#options;
    const process = this.#process;
    if (process !== undefined) {
      logger.info(`${user}: ${name} has left changes without a reply: it is killed, so that none comes late`);
      process.kill();
      await process.ended;
    }
    this.#dialledMs = -Infinity;
  }

  async #keep(): Promise<void> {
    const { name, user } = this.#options;
    for (let pauseMs = FIRST_PAUSE_MS; ;) {
      const sinceMs = performance.now();
      const { how, wasStarted } = await this.#run();
      if (this.#stop.signal.aborted) return;
      const why = `${name} ${how}${this.#adviceOn(how)}`;
      if (this.#hasAnother(how)) {
        logger.info(`${user}: ${why}; it is started in another way`);
        continue;
      }
      if (!this.#hasOpened)
        return this.#failed.reject(new XentoolError(wasStarted ? "io" : "environment", why));
      const longestMs = this.#trouble === undefined ? SERVED_PAUSE_MS : LONGEST_PAUSE_MS;
      const isSteady = performance.now() - sinceMs >= STEADY_MS;
      pauseMs = isSteady ? FIRST_PAUSE_MS : Math.min(2 * pauseMs, longestMs);
      logger.info(`${user}: ${why}; it is started again in ${pauseMs / 1000} s`);
      this.#say(why);
      if (!(await pause(pauseMs, this.#stop.signal))) return;
    }
  }

  /** Whether it is to be started in another way after it `ended` like this; only once. */
  #hasAnother(ended: string): boolean {
    const { argv, otherwise } = this.#options.command;
    if (this.#argv !== argv || otherwise?.when.test(ended) !== true) return false;
    this.#argv = otherwise.argv;
    return true;
  }

  #adviceOn(ended: string): string {
    const { advice } = this.#options.command;
    return advice?.when.test(ended) === true ? `; ${advice.text}` : "";
  }

  async #run(): Promise<Ended> {
    const { name, user, held, command, whyNot } = this.#options;
    const over = new AbortController();
    try {
      const reason = await whyNot?.();
      if (reason !== undefined) return { how: `cannot be started: ${reason}`, wasStarted: true };
      if (this.#stop.signal.aborted) return { how: "is not needed any more", wasStarted: true };
      const fds = [this.#listener.fd, ...held];
      const onLine = (line: string): void => logger.warn(`${user}: ${name}: ${line}`);
      const process = keepProcess(this.#argv, fds, onLine, command);
      this.#process = process;
      if (this.#trouble !== undefined) void this.#watchRecovery(over.signal);
      return await process.ended;
    } catch (error) {
      return { how: `cannot be started: ${describeError(error)}`, wasStarted: false };
    } finally {
      over.abort();
      this.#process = undefined;
      // A connection that was begun just now may have been left to the next one.
      if (performance.now() - this.#dialledMs > ACCEPTED_MS) this.#dialledMs = -Infinity;
    }
  }

  /**
   * Asks it until it answers or is `over`. A silent one keeps one connection waiting, because it takes those that were
   * given up from the socket's queue only later. Silence and refusals are no news: whoever uses the export sees them.
   */
  async #watchRecovery(over: AbortSignal): Promise<void> {
    while (!over.aborted) {
      const asked = probeExport(this.#address, over, Infinity);
      const serves = await asked.then(
        () => true,
        () => false,
      );
      if (serves && !over.aborted) return this.#say(undefined);
      await pause(SERVED_PAUSE_MS, over);
    }
  }

  #say(why: string | undefined): void {
    this.#trouble = why;
    this.#onTrouble(why);
  }
}
