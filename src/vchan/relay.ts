// The relay: copies bytes from a local descriptor into a vchan and from the vchan to a local descriptor, each as fast
// as the other side takes them. Synchronous: it runs in a worker, or step by step in a test.
//
// The end of a stream: a vchan has no half-close. When the local input ends, the relay keeps the vchan open until the
// peer has read everything and its answer has arrived. A peer that understands our end words is told of our end, and
// tells us of its own. Any other peer cannot be told, and may itself wait for our end before it closes, so after a
// while of silence we close first.
import { POLL_GONE, POLLIN, POLLOUT } from "../native/reactor.ts";
import { check, shim } from "../native/shim.ts";
import {
  ARRIVED_LOOK_MS,
  ASK_ROUNDS,
  COMMAND_EXIT_MS,
  LINGER_MS,
  RELAY_CHUNK_BYTES_MIN,
  SHARED_WRITE_BYTES,
  STOP_GRACE_MS,
} from "./bounds.ts";
import { READ, WRITTEN, type VchanEndpoint } from "./endpoint.ts";
import type { LocalEnd, LocalStream } from "./local.ts";
import type { VchanControl } from "./vchan-control.ts";

/**
 * How a relay ended. done: both streams ended and everything arrived. sent: the peer has read everything, and we were
 * only to send. cut-short: the peer said that it ended before its stream did. peer-closed: the peer closed first.
 * peer-lost: it vanished in the middle of its stream. local-closed: nobody takes what the peer sends. lingered: a
 * peer that cannot be told of our end was silent for long enough. stopped: we were told to stop.
 */
export type RelayEnd =
  "done" | "sent" | "cut-short" | "peer-closed" | "peer-lost" | "local-closed" | "lingered" | "stopped";

export interface RelayResult {
  readonly end: RelayEnd;
  /** Bytes that we gave to the vchan but the peer did not read before it closed. */
  readonly unread: number;
  /** Bytes from the peer that could not be delivered. */
  readonly undelivered: number;
  /** The local end had its time to end by itself after the peer, and did not. */
  readonly isLate?: boolean;
  /** The -errno of a failed read or write at the local end; 0 if none failed. */
  readonly inputError: number;
  readonly outputError: number;
}

export interface RelayOptions {
  readonly local: LocalEnd;
  /**
   * How long a peer that cannot be told of our end may be silent once our input has ended and it has read everything.
   * Infinity: as long as it likes. Undefined: LINGER_MS, or as long as it likes if we sent nothing.
   */
  readonly lingerMs?: number | undefined;
  /** End once our input has ended and any peer has read everything. */
  readonly sendOnly?: boolean | undefined;
  /** When told to stop, how long to wait until the peer has read what is in flight. */
  readonly stopGraceMs?: number;
}

const EAGAIN = -11;
const EPIPE = -32;

export class Relay {
  readonly #endpoint: VchanEndpoint;
  readonly #control: VchanControl;
  readonly #lingerMs: number | undefined;
  readonly #sendOnly: boolean;
  readonly #stopGraceMs: number;
  readonly #fillChunk: number;
  readonly #drainChunk: number;
  readonly #endsWithOutput: boolean;
  readonly #keepsOutput: boolean;
  /** The socket that is both input and output. */
  readonly #connection: number | undefined;
  readonly #outputTwin: number | undefined;
  readonly #waking: Disposable;
  /** Numbers of the local descriptors' watches in the endpoint's reactor. */
  readonly #inputWatch: number | undefined;
  readonly #outputWatch: number;
  #input: LocalStream | undefined;
  #output: LocalStream | undefined;
  #inputReady: boolean;
  #outputReady: boolean;
  /** The peer's data waits for room at the local end. */
  #outputBlocked = false;
  #outputBroken = false;
  /** The peer is gone, but the local end has yet to take what it sent. */
  #isLeaving = false;
  /** What it said meanwhile, if anything, has nowhere to go. */
  #hasDropped = false;
  /** When the local end has had its time for that. */
  #leaveAt: number | undefined;
  #isLate = false;
  #inputError = 0;
  #outputError = 0;
  /** Rounds since the descriptors were last asked for. */
  #rounds = 0;
  /** What the peer had yet to read when the current wait for it began or went on. */
  #unreadBefore = 0;
  /** When the current wait for the peer is over; undefined when there is no such wait. */
  #deadline: number | undefined;
  #stopping = false;

  constructor(endpoint: VchanEndpoint, control: VchanControl, options: RelayOptions) {
    const { local } = options;
    this.#endpoint = endpoint;
    this.#control = control;
    this.#lingerMs = options.lingerMs;
    this.#sendOnly = options.sendOnly === true;
    this.#stopGraceMs = options.stopGraceMs ?? STOP_GRACE_MS;
    this.#input = local.input;
    this.#output = local.output;
    // A shared one blocks, so it is used only when poll says so.
    this.#inputReady = local.input?.kind !== "shared";
    this.#outputReady = local.output.kind !== "shared";
    this.#outputTwin = local.outputTwin;
    this.#endsWithOutput = local.endsWithOutput;
    this.#keepsOutput = local.keepsOutput === true;
    this.#connection = local.input?.fd === local.output.fd ? local.output.fd : undefined;
    this.#fillChunk = Math.max(RELAY_CHUNK_BYTES_MIN, endpoint.writeSize / 4);
    const drainChunk = Math.max(RELAY_CHUNK_BYTES_MIN, endpoint.readSize / 4);
    this.#drainChunk = local.output.kind === "shared" ? SHARED_WRITE_BYTES : drainChunk;
    const { reactor } = endpoint;
    this.#waking = control.wakes(reactor);
    this.#inputWatch = local.input && reactor.watch(local.input.fd, () => void (this.#inputReady = true), 0);
    this.#outputWatch = reactor.watch(local.output.fd, () => this.#outputEvent(), 0);
    if (local.input === undefined) endpoint.endStream();
  }

  /** Relays to an end. The local descriptors stay open; only the output's stream is ended. */
  run(): RelayResult {
    try {
      for (;;) {
        const end = this.step();
        if (end !== undefined) return end;
      }
    } finally {
      this.#unwatch();
    }
  }

  /** One round: moves what can be moved, or otherwise waits for something to change. */
  step(): RelayResult | undefined {
    const endpoint = this.#endpoint;
    this.#obey();
    endpoint.sample();
    const drained = this.#drain();
    const filled = this.#fill();
    const moved = drained || filled;
    if (moved) {
      if (!this.#stopping) this.#deadline = undefined;
      this.#control.publish(endpoint.counts);
      // Notify the peer now, so that it can work while we go on.
      endpoint.flush();
      // While one direction always has something to move, there is no wait in which the other could become ready.
      if (++this.#rounds % ASK_ROUNDS === 0) this.#ask();
      if (!this.#stopping && !this.#isLeaving) return undefined;
    }
    const end = this.#end();
    if (end !== undefined) return this.#result(end);
    if (!moved) this.#wait();
    return undefined;
  }

  #drain(): boolean {
    const endpoint = this.#endpoint;
    const output = this.#output;
    if (output === undefined) return false;
    if (endpoint.readable > 0) {
      if (!this.#outputReady) return false;
      const count = endpoint.drain(output.fd, output.kind === "socket", this.#drainChunk);
      if (output.kind === "shared" || count === EAGAIN) this.#outputReady = false;
      if (count < 0 && count !== EAGAIN) this.#breakOutput(count);
      return count > 0;
    }
    if (endpoint.atEnd) this.#endOutput(output);
    return false;
  }

  #fill(): boolean {
    const endpoint = this.#endpoint;
    const input = this.#input;
    if (input === undefined || !this.#inputReady || !this.#wantsInput(input)) return false;
    const isSocket = input.kind === "socket";
    const count = endpoint.peerClosed
      ? shim.xt_stream_skip(input.fd, isSocket ? 1 : 0)
      : endpoint.fill(input.fd, isSocket, this.#fillChunk);
    if (input.kind === "shared" || count === EAGAIN) this.#inputReady = false;
    if (count === 0) this.#endInput();
    else if (count < 0 && count !== EAGAIN) this.#breakInput(count);
    return count > 0;
  }

  /**
   * Whether to read more input: when the ring has room. After the peer has closed, input is read and dropped as long
   * as data from the peer is undelivered, because the local program may not read until it has been able to write, and
   * then for a while more (see #hasLeft).
   */
  #wantsInput(input: LocalStream): boolean {
    const endpoint = this.#endpoint;
    if (!endpoint.peerClosed) return endpoint.writable > 0;
    return input.kind !== "file" && (endpoint.readable > 0 || this.#isLeaving);
  }

  #endInput(): void {
    // A connection reports its failure once, here to a write; after that, reading finds what looks like an end.
    if (this.#outputError !== 0 && this.#input?.kind === "socket") return this.#cutInput();
    this.#input = undefined;
    this.#endpoint.endStream();
  }

  #breakInput(error: number): void {
    this.#inputError = error;
    this.#cutInput();
  }

  /** The peer must not take what it received for the complete stream. */
  #cutInput(): void {
    this.#input = undefined;
    this.#endpoint.cutStream();
  }

  /** Lets the reader of our output see its end, while our input goes on. */
  #endOutput(output: LocalStream): void {
    this.#output = undefined;
    if (this.#keepsOutput) return;
    if (output.kind === "socket") shim.xt_stream_end(output.fd);
    else {
      shim.xt_stream_discard(output.fd);
      if (this.#outputTwin !== undefined) shim.xt_stream_discard(this.#outputTwin);
    }
  }

  #breakOutput(error: number): void {
    this.#output = undefined;
    this.#outputBroken = true;
    if (error !== EPIPE) this.#outputError = error;
    if (this.#endsWithOutput && this.#input !== undefined) this.#leaveInput(this.#input);
  }

  /** Reads no more input. What was sent of it is complete only if it ends just here. */
  #leaveInput(input: LocalStream): void {
    const isSocket = input.kind === "socket";
    if (this.#inputReady && shim.xt_stream_skip(input.fd, isSocket ? 1 : 0) === 0) this.#endInput();
    else this.#cutInput();
  }

  /** How the relay ended, or undefined if it has not. */
  #end(): RelayEnd | undefined {
    const endpoint = this.#endpoint;
    const isTaken = endpoint.readable === 0;
    this.#isLeaving = isTaken && !this.#hasLeft();
    if (this.#isLeaving) this.#hasDropped = true;
    const allRead = this.#input === undefined && endpoint.unread === 0;
    if (this.#outputBroken && this.#input === undefined && (allRead || endpoint.peerClosed))
      return "local-closed";
    if (this.#stopping && isTaken && allRead && !this.#isLeaving) return "stopped";
    if (allRead && endpoint.peerEnded && isTaken && !this.#hasDropped)
      return endpoint.peerCut ? "cut-short" : "done";
    if (endpoint.peerClosed && (isTaken || this.#outputBroken) && !this.#isLeaving) return this.#peersEnd();
    if (this.#stopping) return this.#isOver() ? "stopped" : undefined;
    if (this.#outputBroken && this.#input === undefined && !isTaken) return this.#stuckEnd();
    if (!allRead || !isTaken) this.#deadline = undefined;
    else if (this.#sendOnly) return "sent";
    else this.#deadline ??= performance.now() + this.#patienceMs();
    return this.#isOver() ? "lingered" : undefined;
  }

  /**
   * Whether the local end is done with a peer that is gone. Kernel and pipe may hold much of what the peer sent. If the
   * local end says anything more, a connection that we close loses that, and a command whose output is closed dies. So
   * it gets the time to end by itself.
   */
  #hasLeft(): boolean {
    if (!this.#stopping && !this.#mayAnswer()) return true;
    const isSending = this.#connection !== undefined && shim.xt_stream_is_sending(this.#connection) !== 0;
    if (this.#stopping) return !isSending;
    if (isSending) this.#leaveAt = undefined;
    else this.#leaveAt ??= performance.now() + COMMAND_EXIT_MS;
    this.#isLate = this.#leaveAt !== undefined && performance.now() >= this.#leaveAt;
    return this.#isLate;
  }

  /** Whether the local end got all of a peer that is gone, and may say more. */
  #mayAnswer(): boolean {
    const input = this.#input;
    if (!this.#endpoint.peerClosed || this.#outputBroken || input === undefined) return false;
    const isPipeline = this.#endsWithOutput && this.#connection === undefined;
    return input.kind !== "file" && !isPipeline;
  }

  /** Nobody takes what the peer sends. It may itself wait for that, and never read what we have sent. */
  #stuckEnd(): RelayEnd | undefined {
    const { unread } = this.#endpoint;
    if (unread !== this.#unreadBefore) this.#deadline = undefined;
    this.#unreadBefore = unread;
    this.#deadline ??= performance.now() + LINGER_MS;
    return this.#isOver() ? "local-closed" : undefined;
  }

  /** How long to wait for a peer that has read everything and is silent. */
  #patienceMs(): number {
    const endpoint = this.#endpoint;
    if (endpoint.peerSpeaksOfEnd) return Infinity;
    // A peer that received nothing from us is not waiting for our end: it sends, and may pause.
    return this.#lingerMs ?? (endpoint.counts.bytesWritten > 0 ? LINGER_MS : Infinity);
  }

  #peersEnd(): RelayEnd {
    if (this.#endpoint.peerLost) return "peer-lost";
    return this.#endpoint.peerCut ? "cut-short" : "peer-closed";
  }

  #isOver(): boolean {
    return this.#deadline !== undefined && performance.now() >= this.#deadline;
  }

  /** Finds out which descriptors are ready, without waiting for one. */
  #ask(): void {
    const { reactor } = this.#endpoint;
    this.#watch();
    check(reactor.wait(0, 0), "look at the local end");
    reactor.dispatch();
  }

  #wait(): void {
    const endpoint = this.#endpoint;
    this.#watch();
    const full = endpoint.writable === 0;
    const asksForRoom = full || this.#input === undefined ? READ : 0;
    const wants = endpoint.peerClosed ? 0 : (this.#outputBlocked ? 0 : WRITTEN) | asksForRoom;
    endpoint.wait(wants, this.#timeLeftMs());
  }

  /** Sets what is to be watched of the local end. */
  #watch(): void {
    const { reactor, readable } = this.#endpoint;
    const input = this.#input;
    const output = this.#output;
    const blocked = readable > 0 && output !== undefined;
    this.#outputBlocked = blocked;
    if (this.#inputWatch !== undefined)
      reactor.rewatch(this.#inputWatch, input !== undefined && this.#wantsInput(input) ? POLLIN : 0);
    // With nothing to write, watch only whether the reader has gone.
    reactor.rewatch(this.#outputWatch, output === undefined ? 0 : blocked ? POLLOUT : POLL_GONE);
  }

  #outputEvent(): void {
    if (this.#outputBlocked) this.#outputReady = true;
    else this.#breakOutput(EPIPE);
  }

  #unwatch(): void {
    const { reactor } = this.#endpoint;
    this.#waking[Symbol.dispose]();
    if (this.#inputWatch !== undefined) reactor.unwatch(this.#inputWatch);
    reactor.unwatch(this.#outputWatch);
  }

  /** The time until the deadline, in milliseconds; -1 is for ever. */
  #timeLeftMs(): number {
    const now = performance.now();
    const end = Math.min(this.#deadline ?? Infinity, this.#isLeaving ? now + ARRIVED_LOOK_MS : Infinity);
    return end === Infinity ? -1 : Math.max(0, Math.ceil(end - now));
  }

  #obey(): void {
    if (this.#control.peerDead) this.#endpoint.declarePeerDead();
    if (!this.#control.stopped || this.#stopping) return;
    this.#stopping = true;
    this.#deadline = performance.now() + this.#stopGraceMs;
    if (this.#input !== undefined) this.#cutInput();
  }

  #result(end: RelayEnd): RelayResult {
    this.#endpoint.endStream();
    this.#control.publish(this.#endpoint.counts);
    const { unread, readable } = this.#endpoint;
    return {
      ...(this.#isLate ? { isLate: true } : {}),
      end,
      unread,
      undelivered: readable,
      inputError: this.#inputError,
      outputError: this.#outputError,
    };
  }
}
