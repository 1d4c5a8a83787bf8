// The connections to one NBD server. They come and go together: when one is lost, all are closed, and after a pause
// they are made anew, again and again, until the server is there or the disk has been held for long enough. Connecting
// is the control side's part, which hands over descriptors: a plane may be forbidden to open any.
//
// A server that lives may carry out what it was sent on a connection long after that was closed, and so undo what came
// on the next one. So a connection is closed only when all changes that were sent on it have been replied to, or when
// it has failed, or the server has had long enough. Only a reply is proof: QEMU's server ends a connection at once
// when it is asked to, and later carries out what came on it before.
import { closeSync } from "node:fs";
import { moduleLogger } from "../../../core/log.ts";
import { Timer, type Reactor } from "../../../native/reactor.ts";
import { NBD_FLAG_CAN_MULTI_CONN } from "../../../protocol/nbd.ts";
import { NbdConnection, type ConnectionOwner } from "./connection.ts";
import { whyNotDialled } from "./dial.ts";
import { whyNotTheSame } from "./export-check.ts";
import type { SeenExport } from "./handshake.ts";
import type { NbdRequests } from "./requests.ts";

/** A descriptor that is being connected, or a number for `whyNotDialled`. */
export type OnDialled = (result: number) => void;

export interface LinkOptions {
  readonly exportName: string;
  /** The export as it was when it was offered to the guest. */
  readonly seen: SeenExport;
  /** How many there are, if the server announces that it serves all of them alike; otherwise one. */
  readonly connections: number;
  /**
   * How long the server may be silent while something is under way, and how much longer it may leave a request without
   * a reply than later ones. A server that is given up for this has twice the time on the next connection: it may be
   * slow.
   */
  readonly silenceMs: number;
  /** It is a program of ours: when that has ended, so have its connections. Until then, silence is waited out. */
  readonly isOurs: boolean;
  /** How long a server that is given up may take to reply to changes that it was sent. */
  readonly endingMs: number;
  /** How long a disk waits for its server. */
  readonly holdMs: number;
  /**
   * Begins a connection, and calls back with it. Not called again before that. `anew`: the server was sent changes that
   * no reply is awaited to any more, and that must not be carried out after newer ones, if that can be prevented.
   */
  readonly dial: (onDialled: OnDialled, anew: boolean) => void;
  /** Reports why the disk waits; undefined: it waits no longer. `isOver`: it has waited for long enough, and fails. */
  readonly onHeld?: (why: string | undefined, isOver?: boolean) => void;
}

export interface LinkOwner {
  /** As in ConnectionOwner. */
  replied(slot: number): void;
  /** Called when all connections are there. The owner calls `settled` once the server has what it may have lost. */
  up(): void;
  /** Called before the connections end: nothing is sent until `up`, but replies may come until `down`. */
  ending(): void;
  /** Called when what was under way has lost its connections. */
  down(): void;
  /** Called when the time is over: nothing will ever be sent again. */
  gaveUp(): void;
}

const logger = moduleLogger("nbd");

const FIRST_PATIENCE_MS = 10_000;
/** How long a further connection may take. A server may limit its clients by silence; then we use those we have. */
const MORE_PATIENCE_MS = 2000;
const FIRST_PAUSE_MS = 20;
const LONGEST_PAUSE_MS = 1000;
/** A server that was there for this long is not one that is lost again and again. */
const STEADY_MS = 1000;
/** How often a server is looked at whose silence is waited out, or which has one request for long. */
const SILENCE_LOOK_MS = 1000;
/** A server that goes on replying, so that it is never silent, has this many times the limit of its silence. */
const LAST_PATIENCE = 12;
/** No server that is given up again and again is waited for longer than this. */
const LONGEST_SILENCE_MS = 16 * 60_000;

export class NbdLink implements ConnectionOwner {
  /** Why there are no connections. */
  failure: string | undefined;
  isOver = false;
  /** In the order in which the server accepted them. */
  readonly connections: NbdConnection[] = [];
  readonly #options: LinkOptions;
  readonly #reactor: Reactor;
  readonly #requests: NbdRequests;
  readonly #owner: LinkOwner;
  #stage: "down" | "joining" | "up" | "ending" = "down";
  #joining: NbdConnection | undefined;
  /** How many connections this server gets. */
  #wanted = 1;
  #isDialling = false;
  /** The next connection is to be made anew. */
  #anew = false;
  #pauseMs = FIRST_PAUSE_MS;
  #servingSinceMs = Infinity;
  #heldSinceMs = Infinity;
  #holdMs: number;
  #endingMs: number;
  #silenceMs: number;
  #longestSilenceMs = LONGEST_SILENCE_MS;
  #waitsOutSilence: boolean;
  /** That has been reported, and is all that is wrong. */
  #isSilent = false;
  readonly #silence = new Timer(() => this.#checkSilence());
  readonly #patience = new Timer(() => this.#outOfPatience());
  readonly #ended = new Timer(() => this.#endWhenReplied());
  readonly #ending = new Timer(() => this.#endAnyway());
  readonly #retry = new Timer(() => this.#begin());
  readonly #hold = new Timer(() => this.#checkHold());
  /** Set once the server's silence is limited. */
  readonly #last = new Timer(() => this.#outOfTime());

  constructor(options: LinkOptions, reactor: Reactor, requests: NbdRequests, owner: LinkOwner) {
    this.#options = options;
    this.#reactor = reactor;
    this.#requests = requests;
    this.#owner = owner;
    this.#holdMs = options.holdMs;
    this.#endingMs = options.endingMs;
    this.#silenceMs = options.silenceMs;
    this.#waitsOutSilence = options.isOurs;
  }

  /** Whether requests may be sent. */
  get isUp(): boolean {
    return this.#stage === "up";
  }

  /** Whether the server has been given up, and may still reply. */
  get isEnding(): boolean {
    return this.#stage === "ending";
  }

  /** Begins to connect. */
  open(anew: boolean): void {
    this.#anew = anew;
    this.#begin();
  }

  /** Sends the request in `slot` on the connection with the least to do. */
  send(slot: number): void {
    let best = this.connections[0];
    for (const connection of this.connections) if (connection.inFlight < best.inFlight) best = connection;
    this.sendOn(best, slot);
  }

  sendOn(connection: NbdConnection, slot: number): void {
    connection.send(slot);
    if (this.#silence.dueMs === Infinity) this.#reactor.setTimer(this.#silence, this.#silenceMs);
  }

  /** To be called when the server has everything again that it may have lost. */
  settled(): void {
    const wasHeld = this.failure !== undefined;
    this.failure = undefined;
    this.#heldSinceMs = Infinity;
    this.#servingSinceMs = this.#reactor.nowMs;
    if (wasHeld) this.#options.onHeld?.(undefined);
  }

  /** Sets the longest that the disk is held from now on. */
  limitHold(ms: number): void {
    const heldMs = Math.max(0, this.#reactor.nowMs - this.#heldSinceMs);
    this.#holdMs = Math.min(this.#holdMs, heldMs + ms);
    this.#checkHold();
  }

  /**
   * Sets the longest that the server may be silent from now on, whoever it is. In LAST_PATIENCE times as long it has to
   * have replied to everything.
   */
  limitSilence(ms: number): void {
    if (this.#last.dueMs === Infinity) this.#reactor.setTimer(this.#last, LAST_PATIENCE * ms);
    this.#longestSilenceMs = Math.min(this.#longestSilenceMs, ms);
    this.#silenceMs = Math.min(this.#silenceMs, ms);
    this.#waitsOutSilence = false;
    // What is sent from now on would be waited for as long as what was sent before.
    if (this.#silence.dueMs !== Infinity) this.#reactor.setTimer(this.#silence, this.#silenceMs);
    this.#checkSilence();
  }

  /** Sets the longest wait from now on for a server that has been given up, or will be. */
  limitEnding(ms: number): void {
    this.#endingMs = Math.min(this.#endingMs, ms);
    if (this.isEnding) this.#reactor.setTimer(this.#ending, this.#endingMs);
  }

  /** Ends all connections, for good. */
  close(): void {
    this.isOver = true;
    this.#closeAll();
  }

  replied(slot: number): void {
    this.#owner.replied(slot);
    if (this.isEnding) this.#reactor.setTimer(this.#ended, 0);
  }

  accept(seen: SeenExport): string | undefined {
    const { seen: promised, connections } = this.#options;
    const takesSeveral = (seen.flags & NBD_FLAG_CAN_MULTI_CONN) !== 0;
    if (this.connections.length === 0) this.#wanted = takesSeveral ? connections : 1;
    else if (!takesSeveral) return "the server takes only one connection now";
    return whyNotTheSame(promised, seen);
  }

  ready(connection: NbdConnection): void {
    this.#joining = undefined;
    if (this.connections.push(connection) < this.#wanted) this.#dial(MORE_PATIENCE_MS);
    else this.#up();
  }

  lost(connection: NbdConnection, why: string): void {
    if (connection === this.#joining && this.connections.length > 0) return this.#joinNoMore();
    const at = this.connections.indexOf(connection);
    if (at >= 0) this.connections.splice(at, 1);
    this.#anew ||= connection.mayChange;
    connection.close();
    if (this.isEnding) this.#reactor.setTimer(this.#ended, 0);
    else this.fail(why);
  }

  /** Gives up the server as it is. Its connections are made anew. */
  fail(why: string): void {
    if (this.isOver || this.#stage === "down" || this.isEnding) return;
    const servedMs = this.#reactor.nowMs - this.#servingSinceMs;
    if (servedMs > STEADY_MS) this.#pauseMs = FIRST_PAUSE_MS;
    this.#servingSinceMs = Infinity;
    this.#isSilent = false;
    this.#stage = "ending";
    this.#joining?.close();
    this.#joining = undefined;
    for (const connection of this.connections) connection.sendNoMore();
    this.#held(why);
    this.#owner.ending();
    this.#reactor.setTimer(this.#ended, 0);
    if (this.#endingMs < Infinity) this.#reactor.setTimer(this.#ending, this.#endingMs);
    this.#checkHold();
  }

  #held(why: string): void {
    if (this.failure !== why) this.#options.onHeld?.(why);
    this.failure = why;
    if (this.#heldSinceMs === Infinity) this.#heldSinceMs = this.#reactor.nowMs;
  }

  #begin(): void {
    if (this.isOver) return;
    this.#stage = "joining";
    this.#dial(FIRST_PATIENCE_MS);
  }

  #dial(patienceMs: number): void {
    this.#reactor.setTimer(this.#patience, patienceMs);
    if (this.#isDialling) return;
    this.#isDialling = true;
    const anew = this.#anew;
    this.#options.dial((result) => this.#dialled(result, anew), anew);
  }

  #dialled(result: number, anew: boolean): void {
    this.#isDialling = false;
    // It was asked for before there was a reason to make it anew.
    const isStale = this.#anew && !anew;
    if (result >= 0 && anew) this.#anew = false;
    if (this.isOver || this.#stage !== "joining" || isStale) {
      if (result >= 0) closeSync(result);
      if (isStale) this.fail("the server has left changes without a reply");
      return;
    }
    if (result >= 0)
      this.#joining = new NbdConnection(
        this.connections.length,
        result,
        this.#options.exportName,
        this.#reactor,
        this.#requests,
        this,
      );
    else if (this.connections.length > 0) this.#up();
    else this.fail(whyNotDialled(result));
  }

  #outOfPatience(): void {
    if (this.isOver || this.#stage !== "joining") return;
    if (this.connections.length > 0) this.#joinNoMore();
    else this.fail(`it has not answered for ${FIRST_PATIENCE_MS} ms`);
  }

  #joinNoMore(): void {
    this.#joining?.close();
    this.#joining = undefined;
    this.#up();
  }

  #up(): void {
    this.#stage = "up";
    this.#owner.up();
  }

  #endWhenReplied(): void {
    if (this.isEnding && !this.connections.some((it) => it.mayChange)) this.#down();
  }

  #endAnyway(): void {
    if (!this.isEnding) return;
    logger.warn(
      "the NBD server has not replied to all changes; if it lives, it may carry them out after newer ones",
    );
    this.#down();
  }

  #down(): void {
    this.#stage = "down";
    this.#anew ||= this.connections.some((it) => it.mayChange);
    this.#closeAll();
    this.#owner.down();
    this.#reactor.setTimer(this.#retry, this.#pauseMs);
    this.#pauseMs = Math.min(LONGEST_PAUSE_MS, this.#pauseMs * 2);
  }

  #closeAll(): void {
    for (const connection of this.connections.splice(0)) connection.close();
    this.#joining?.close();
    this.#joining = undefined;
  }

  /** Gives the server up when it has been waited for long enough. */
  #checkHold(): void {
    const leftMs = this.#heldSinceMs + this.#holdMs - this.#reactor.nowMs;
    if (this.isOver || leftMs === Infinity) return;
    if (leftMs > 0) return this.#reactor.setTimer(this.#hold, leftMs);
    this.#giveUpForGood();
  }

  #outOfTime(): void {
    if (this.isOver) return;
    this.#held(`it has not replied to everything for ${LAST_PATIENCE * this.#longestSilenceMs} ms`);
    this.#giveUpForGood();
  }

  #giveUpForGood(): void {
    this.close();
    logger.warn(`the NBD server is no longer waited for: ${this.failure}`);
    this.#options.onHeld?.(this.failure, true);
    this.#owner.gaveUp();
  }

  #checkSilence(): void {
    if (this.isOver) return;
    let leftMs = Infinity;
    for (const connection of this.connections) {
      if (connection.inFlight === 0) continue;
      const why = this.#whyLost(connection);
      if (why !== undefined) return this.#tooSilent(why);
      leftMs = Math.min(leftMs, this.#untilLookMs(connection));
    }
    this.#heard(leftMs);
  }

  /** Why `connection`, on which something is under way, cannot be waited for any longer. */
  #whyLost({ heardMs, answeredSinceMs, oldest }: NbdConnection): string | undefined {
    const silenceMs = this.#silenceMs;
    const { sinceMs } = this.#requests;
    if (this.#reactor.nowMs - heardMs >= silenceMs) return `nothing came from it for ${silenceMs} ms`;
    // Its age alone would say nothing: on a slow line it may have many before it.
    if (answeredSinceMs - sinceMs[oldest] < silenceMs) return undefined;
    return `it has replied to what was asked ${silenceMs} ms after a ${this.#requests.nameOf(oldest)}, and not to that`;
  }

  /** Until `connection` can next be found silent, or without a reply. */
  #untilLookMs({ heardMs, oldest }: NbdConnection): number {
    const endMs = this.#silenceMs - this.#reactor.nowMs;
    const oldestLeftMs = this.#requests.sinceMs[oldest] + endMs;
    return oldestLeftMs > 0 ? oldestLeftMs : Math.min(heardMs + endMs, SILENCE_LOOK_MS);
  }

  #tooSilent(why: string): void {
    if (!this.#waitsOutSilence) return this.#giveUp(why);
    this.#reactor.setTimer(this.#silence, SILENCE_LOOK_MS);
    if (this.failure !== undefined) return;
    this.#isSilent = true;
    this.#held(why);
    this.#checkHold();
  }

  /** A server that is only slow must not be asked the same for ever, each time for too short a time. */
  #giveUp(why: string): void {
    if (this.isEnding) return;
    const isNews = this.#reactor.nowMs - this.#servingSinceMs > 3 * this.#silenceMs;
    const fromMs = isNews ? this.#options.silenceMs : this.#silenceMs;
    this.#silenceMs = Math.min(this.#longestSilenceMs, 2 * fromMs);
    this.fail(why);
  }

  #heard(leftMs: number): void {
    if (leftMs < Infinity) this.#reactor.setTimer(this.#silence, leftMs);
    if (!this.#isSilent) return;
    this.#isSilent = false;
    this.settled();
  }
}
