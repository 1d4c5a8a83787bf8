// One guest with disks of ours: has a process while it has disks, and another one when that dies. As with a device
// (device.ts), an event only means "look again", and decide-guest.ts chooses the one step to take.
import { describeError } from "../../core/errors.ts";
import { Looking } from "../../core/looking.ts";
import { moduleLogger } from "../../core/log.ts";
import type { Domid } from "../../core/types.ts";
import { ReconnectPause } from "../device/reconnect-pause.ts";
import { decideGuest, type GuestStep } from "./decide-guest.ts";
import type { GuestProcess } from "./guest-process.ts";

const logger = moduleLogger("watch");

export interface GuestGround {
  readonly frontend: Domid;
  /** Whether xenstore has a disk of the guest for us. Rejects when xenstore does not answer. */
  readonly hasDisks: () => Promise<boolean>;
  readonly start: (onChange: () => void) => GuestProcess;
  /** The guest needs no process any more. */
  readonly onForgotten: () => void;
}

export class SupervisedGuest {
  readonly #ground: GuestGround;
  readonly #pause = new ReconnectPause();
  readonly #looking = new Looking(() => this.#lookOnce());
  #process: GuestProcess | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #over = false;
  #isHeld: boolean;
  #withoutDisksSinceMs: number | undefined;

  /** While it is held, another `watch` serves the guest: its process is prepared, and does not serve. */
  constructor(ground: GuestGround, isHeld = false) {
    this.#ground = ground;
    this.#isHeld = isHeld;
  }

  get process(): GuestProcess | undefined {
    return this.#process;
  }

  async look(): Promise<void> {
    try {
      await this.#looking.look();
    } catch (error) {
      logger.debug(`${this.#name}: ${describeError(error)}`);
    }
  }

  async #lookOnce(): Promise<void> {
    if (this.#over) return;
    const hasDisks = await this.#ground.hasDisks();
    if (!this.#over) this.#take(this.#decide(hasDisks));
  }

  /** Serves the guest: nobody else does any more. */
  release(): void {
    if (!this.#isHeld) return;
    this.#isHeld = false;
    this.#process?.serve();
  }

  /** Has its process leave the disks to the next server, and resolves when it has; no other one is started. */
  async leave(): Promise<void> {
    this.#over = true;
    clearTimeout(this.#timer);
    this.#process?.end();
    await this.#process?.left;
  }

  /** Like `leave`, but resolves when the process is gone. */
  async end(): Promise<void> {
    await this.leave();
    await this.#process?.ended;
  }

  #decide(hasDisks: boolean): GuestStep {
    const process = this.#process;
    const nowMs = performance.now();
    if (hasDisks) this.#withoutDisksSinceMs = undefined;
    else this.#withoutDisksSinceMs ??= nowMs;
    return decideGuest({
      hasDisks,
      withoutDisksMs: nowMs - (this.#withoutDisksSinceMs ?? nowMs),
      process: process === undefined ? "none" : process.isEnding ? "ending" : "serving",
      served: process?.disks ?? 0,
      pauseMs: this.#pause.remainingMs(),
    });
  }

  #take(step: GuestStep): void {
    clearTimeout(this.#timer);
    switch (step.step) {
      case "start":
        return this.#start();
      case "end":
        return this.#process?.end();
      case "wait":
        return this.#lookIn(step.pauseMs);
      case "forget":
        // Whoever has us look again leaves it to us, and would not begin anew.
        if (this.#looking.isStale) return;
        this.#over = true;
        return this.#ground.onForgotten();
      case "none":
        return;
    }
  }

  #start(): void {
    this.#pause.connecting();
    try {
      const process = this.#ground.start(() => void this.look());
      this.#process = process;
      if (!this.#isHeld) process.serve();
      void process.ended.then((how) => this.#ended(process, how));
    } catch (error) {
      logger.error(`${this.#name}: no process for its disks: ${describeError(error)}; it is tried again`);
      this.#failed();
    }
  }

  #ended({ isEnding }: GuestProcess, how: string): void {
    this.#process = undefined;
    if (this.#over) return;
    if (isEnding) return void this.look();
    logger.error(`${this.#name}: its process ended (${how}); another one takes its disks over`);
    this.#failed();
  }

  #failed(): void {
    this.#pause.failed();
    void this.look();
  }

  #lookIn(pauseMs: number): void {
    this.#timer = setTimeout(() => void this.look(), pauseMs);
  }

  get #name(): string {
    return `domain ${this.#ground.frontend}`;
  }
}
