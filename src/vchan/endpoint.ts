// One end of a vchan: the data plane. Everything here is synchronous and allocates nothing per transfer; the
// one place where it waits is `wait`. Closing tells the peer and gives back every page, port and handle.
// Protocol: io/libxenvchan.h; what it does better than libxenvchan is told in docs/vchan.md.
import { XentoolError } from "../core/errors.ts";
import { AdaptivePoll } from "../core/adaptive-poll.ts";
import type { Domid, EvtchnPort } from "../core/types.ts";
import {
  XT_POLL,
  XT_POLL_IN,
  XT_POLL_OUT,
  XT_VCHAN,
  XT_VCHAN_BAD_PROD,
  XT_VCHAN_READ,
  XT_VCHAN_WRITTEN,
} from "../native/abi.ts";
import { allocateMemory, type Mapping } from "../native/memory.ts";
import { check, shim } from "../native/shim.ts";
import type { EventChannels } from "../platform/platform.ts";
import {
  isEnd,
  speaksOfEnd,
  VCHAN_CLI_LIVE,
  VCHAN_END_CUT,
  VCHAN_END_REACHED,
  VCHAN_GONE,
  VCHAN_NOT_CONNECTED,
  VCHAN_SRV_LIVE,
  type RingPlace,
  type VchanLayout,
} from "../protocol/vchan.ts";

export type VchanRole = "server" | "client";

/** The peer wrote, or read, since the last sample: what `wait` can wait for. Bits. */
export const WRITTEN = XT_VCHAN_WRITTEN;
export const READ = XT_VCHAN_READ;
/** In the answer of `wait`: the event channel's bit; a watched descriptor's is `2 << slot`. */
export const EVENT_READY = 1;
/** poll(2)'s events. */
export const POLLIN = XT_POLL_IN;
export const POLLOUT = XT_POLL_OUT;
/** Descriptors that `watch` has room for. */
export const WATCH_SLOTS = 6;

/**
 * How long waiting looks at the ring before it sleeps, at most: about what being woken costs both sides where that
 * is slow. Where what is waited for takes longer than LOOK_PAYS_US on average, it sleeps instead.
 */
const LOOK_US_MAX = 2000;
const LOOK_PAYS_US = 250;

// Words of struct xt_vchan.
const WORD_READ_SIZE = XT_VCHAN.read_size / 4;
const WORD_WRITE_SIZE = XT_VCHAN.write_size / 4;
const WORD_IS_SERVER = XT_VCHAN.is_server / 4;
const WORD_END_OFFSET = XT_VCHAN.end_offset / 4;
const WORD_READ_CONS = XT_VCHAN.read_cons / 4;
const WORD_WRITE_PROD = XT_VCHAN.write_prod / 4;
const WORD_READ_PROD = XT_VCHAN.read_prod / 4;
const WORD_WRITE_CONS = XT_VCHAN.write_cons / 4;
const WORD_PEER_LIVE = XT_VCHAN.peer_live / 4;
const WORD_PEER_END = XT_VCHAN.peer_end / 4;
const WORD_BAD_COUNTER = XT_VCHAN.bad_counter / 4;
const WORD_LOOK_US = XT_VCHAN.look_us / 4;
const WORD_LOOKED_US = XT_VCHAN.looked_us / 4;
const WORD_SLEPT_US = XT_VCHAN.slept_us / 4;
// Words of struct xt_poll.
const POLL_WORDS = XT_POLL.bytes / 4;
const POLL_FD = XT_POLL.fd / 4;
const POLL_EVENTS = XT_POLL.events / 4;

export interface EndpointParts {
  readonly role: VchanRole;
  readonly peer: Domid;
  /** The shared page. */
  readonly page: Mapping;
  readonly layout: VchanLayout;
  /** The pages of rings that do not lie in the shared page. */
  readonly leftPages: Mapping | undefined;
  readonly rightPages: Mapping | undefined;
  readonly channels: EventChannels;
  readonly port: EvtchnPort;
  /** Where our two counters stand. */
  readonly readCounter: number;
  readonly writeCounter: number;
  /** False: sleep at once. */
  readonly looks?: boolean | undefined;
  /** Gives back mappings, port and handles; runs once. */
  readonly release: () => void;
}

export interface VchanCounts {
  bytesRead: number;
  bytesWritten: number;
  eventsSent: number;
  eventsReceived: number;
}

export class VchanEndpoint {
  readonly role: VchanRole;
  readonly peer: Domid;
  readonly readSize: number;
  readonly writeSize: number;
  readonly counts: VchanCounts = { bytesRead: 0, bytesWritten: 0, eventsSent: 0, eventsReceived: 0 };
  readonly #parts: EndpointParts;
  readonly #state: Mapping;
  readonly #words: Uint32Array<ArrayBuffer>;
  readonly #poll: AdaptivePoll;
  /** The event channel's struct xt_poll, then those of the watched descriptors. */
  readonly #polled = new Int32Array(new ArrayBuffer(XT_POLL.bytes * (1 + WATCH_SLOTS)));
  readonly #ports = new Uint32Array(new ArrayBuffer(16));
  #polledCount = 1;
  #owed = 0;
  #saidEnd = false;
  /** The end word that the peer has said, and may not take back; 0 until then. */
  #peerEnd = 0;
  #peerClosed = false;
  #peerLost = false;
  #closed = false;

  constructor(parts: EndpointParts) {
    this.#parts = parts;
    this.role = parts.role;
    this.peer = parts.peer;
    const { left, right, endWordsAt } = parts.layout;
    const isServer = parts.role === "server";
    const [read, write] = isServer ? [left, right] : [right, left];
    const [readPages, writePages] = isServer
      ? [parts.leftPages, parts.rightPages]
      : [parts.rightPages, parts.leftPages];
    this.readSize = read.sizeBytes;
    this.writeSize = write.sizeBytes;
    this.#state = allocateMemory(XT_VCHAN.bytes);
    this.#words = this.#state.words;
    const addresses = new Float64Array(this.#state.bytes.buffer);
    addresses[XT_VCHAN.header / 8] = parts.page.address;
    addresses[XT_VCHAN.read_data / 8] = ringAddress(parts.page, readPages, read);
    addresses[XT_VCHAN.write_data / 8] = ringAddress(parts.page, writePages, write);
    this.#set(WORD_READ_SIZE, read.sizeBytes);
    this.#set(WORD_WRITE_SIZE, write.sizeBytes);
    this.#set(WORD_IS_SERVER, isServer ? 1 : 0);
    this.#set(WORD_END_OFFSET, endWordsAt);
    this.#set(WORD_READ_CONS, parts.readCounter);
    this.#set(WORD_WRITE_PROD, parts.writeCounter);
    // Nothing is known of the peer's counters yet but that they lie within a ring's size of ours.
    this.#set(WORD_READ_PROD, parts.readCounter);
    this.#set(WORD_WRITE_CONS, parts.writeCounter - write.sizeBytes);
    this.#set(WORD_PEER_LIVE, isServer ? VCHAN_NOT_CONNECTED : 1);
    this.#poll = new AdaptivePoll(parts.looks === false ? 0 : LOOK_US_MAX, LOOK_PAYS_US);
    this.#polled[POLL_FD] = parts.channels.fd;
    this.#polled[POLL_EVENTS] = POLLIN;
  }

  get port(): EvtchnPort {
    return this.#parts.port;
  }

  /** The shared page: for tests that play a hostile peer. */
  get page(): Mapping {
    return this.#parts.page;
  }

  /** Bytes that the last sample found ready to be read. */
  get readable(): number {
    return (this.#get(WORD_READ_PROD) - this.#get(WORD_READ_CONS)) >>> 0;
  }

  /** Bytes that the last sample found room for. */
  get writable(): number {
    return this.writeSize - this.unread;
  }

  /** Bytes that we wrote and the peer had not read at the last sample. */
  get unread(): number {
    return (this.#get(WORD_WRITE_PROD) - this.#get(WORD_WRITE_CONS)) >>> 0;
  }

  /** False while a server still waits for its client. */
  get connected(): boolean {
    return this.#peerClosed || this.#get(WORD_PEER_LIVE) !== VCHAN_NOT_CONNECTED;
  }

  /** The peer closed, or died. What it wrote before can still be read. */
  get peerClosed(): boolean {
    return this.#peerClosed;
  }

  /** The peer can say, and be told, where a stream ends while the vchan stays open. */
  get peerSpeaksOfEnd(): boolean {
    return speaksOfEnd(this.#get(WORD_PEER_END));
  }

  /** The peer vanished in the middle of its stream, as far as that can be told. */
  get peerLost(): boolean {
    return this.#peerClosed && !this.peerEnded && (this.#peerLost || this.peerSpeaksOfEnd);
  }

  /** The peer said that it will write no more. */
  get peerEnded(): boolean {
    return this.#peerEnd !== 0;
  }

  /** The peer said that it ends before its stream does. */
  get peerCut(): boolean {
    return this.#peerEnd === VCHAN_END_CUT;
  }

  /** Nothing more will come, and everything that came has been read. */
  get atEnd(): boolean {
    return (this.#peerClosed || this.peerEnded) && this.readable === 0;
  }

  /** The peer's domain is gone, as somebody else found out: no event will tell. It may have closed before that. */
  declarePeerDead(): void {
    this.sample();
    if (!this.#peerClosed) this.#peerLost = true;
    this.#peerClosed = true;
  }

  /**
   * Looks at what the peer did: whether it lives and has ended first, then its counters, so that what it wrote
   * before is always found. Fails with `protocol` when a counter lies or moves after the end.
   */
  sample(): void {
    const before = this.#get(WORD_READ_PROD);
    const fault = shim.xt_vchan_sample(this.#state.bytes);
    if (fault !== 0) throw this.#counterError(fault);
    if (this.#get(WORD_PEER_LIVE) === VCHAN_GONE) this.#peerClosed = true;
    if (this.#peerEnd === 0) {
      const word = this.#get(WORD_PEER_END);
      if (isEnd(word)) this.#peerEnd = word;
    } else if (this.#get(WORD_READ_PROD) !== before) throw this.#afterEndError();
  }

  /** Reads what is there, up to the length of `into`: how many bytes, 0 for none now (see `atEnd`). */
  read(into: Uint8Array): number {
    this.sample();
    return this.#took(shim.xt_vchan_read(this.#state.bytes, into, into.length), true);
  }

  /** Writes what fits now: how many bytes. Fails with `io` when the peer has closed. */
  write(from: Uint8Array): number {
    this.sample();
    if (this.#peerClosed) throw this.#closedError();
    return this.#gave(shim.xt_vchan_write(this.#state.bytes, from, from.length), true);
  }

  /**
   * Fills `into` or does nothing and says false. There are no records: bytes are taken as they come. Fails
   * with `io` when so many will never come.
   */
  recv(into: Uint8Array): boolean {
    this.#expectFit(into.length, this.readSize);
    this.sample();
    if (this.readable < into.length) {
      if (this.#peerClosed || this.peerEnded) throw this.#closedError();
      return false;
    }
    this.#took(shim.xt_vchan_read(this.#state.bytes, into, into.length), true);
    return true;
  }

  /** Writes all of `from` or does nothing and says false. */
  send(from: Uint8Array): boolean {
    this.#expectFit(from.length, this.writeSize);
    this.sample();
    if (this.#peerClosed) throw this.#closedError();
    if (this.writable < from.length) return false;
    this.#gave(shim.xt_vchan_write(this.#state.bytes, from, from.length), true);
    return true;
  }

  /**
   * One read(2) of up to `max` bytes from `fd` into the ring, within what the last sample found free: bytes,
   * 0 at the end of the file, or -errno. The peer is told at the next `flush` or `wait`.
   */
  fill(fd: number, isSocket: boolean, max: number): number {
    return this.#gave(shim.xt_vchan_fill(this.#state.bytes, fd, isSocket ? 1 : 0, max), false);
  }

  /** One write(2) of up to `max` bytes from the ring to `fd`: bytes or -errno. Otherwise as `fill`. */
  drain(fd: number, isSocket: boolean, max: number): number {
    return this.#took(shim.xt_vchan_drain(this.#state.bytes, fd, isSocket ? 1 : 0, max), false);
  }

  /** Tells a peer that understands it that we shall write no more. Reading goes on. Only the first end counts. */
  endStream(): void {
    this.#sayEnd(VCHAN_END_REACHED);
  }

  /** The same when there would have been more to write, so that the peer does not take it for all. */
  cutStream(): void {
    this.#sayEnd(VCHAN_END_CUT);
  }

  /** Sends the peer an event if it asked to be told of what we did since the last flush. */
  flush(): void {
    if (this.#owed === 0) return;
    const asked = shim.xt_vchan_take_request(this.#state.bytes, this.#owed);
    this.#owed = 0;
    if (asked !== 0) this.notifyPeer();
  }

  /** Sends the peer an event whether it asked or not. */
  notifyPeer(): void {
    this.counts.eventsSent++;
    this.#parts.channels.notify(this.#parts.port);
  }

  /** Makes `wait` also wait for `fd`, for poll(2)'s `events` (0: for errors alone). A negative fd: not. */
  watch(slot: number, fd: number, events: number): void {
    const at = POLL_WORDS * (1 + slot);
    this.#polled[at + POLL_FD] = fd;
    this.#polled[at + POLL_EVENTS] = events;
    if (this.#polledCount < slot + 2) this.#polledCount = slot + 2;
  }

  /**
   * Waits until the peer did one of `wants`, ended its stream or closed, a watched descriptor is ready, or
   * the time is up (-1: never). Says which descriptors: EVENT_READY and `2 << slot`. Samples nothing.
   */
  wait(wants: number, timeoutMs: number): number {
    this.flush();
    const { channels, port } = this.#parts;
    this.#set(WORD_LOOK_US, this.#poll.us);
    const ready = shim.xt_vchan_wait(this.#state.bytes, this.#polled, this.#polledCount, wants, timeoutMs);
    check(ready, "wait for the vchan");
    const lookedUs = this.#get(WORD_LOOKED_US);
    const sleptUs = this.#get(WORD_SLEPT_US);
    if (lookedUs > 0) this.#poll.looked(lookedUs);
    if (sleptUs > 0) this.#poll.slept((ready & EVENT_READY) === 0 ? Infinity : sleptUs);
    if ((ready & EVENT_READY) !== 0 && check(channels.pending(this.#ports), "read the event channel") > 0) {
      this.counts.eventsReceived++;
      check(channels.unmask(port), "unmask the event channel");
    }
    return ready;
  }

  /** Tells the peer that we are gone and gives everything back. Closing twice is harmless. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    const ownLive = this.role === "server" ? VCHAN_SRV_LIVE : VCHAN_CLI_LIVE;
    shim.xt_store8(this.#parts.page.bytes.subarray(ownLive), VCHAN_GONE);
    this.notifyPeer();
    this.#parts.release();
    this.#state.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #get(word: number): number {
    return Atomics.load(this.#words, word);
  }

  #set(word: number, value: number): void {
    Atomics.store(this.#words, word, value);
  }

  #took(count: number, flush: boolean): number {
    if (count > 0) {
      this.counts.bytesRead += count;
      this.#owed |= READ;
      if (flush) this.flush();
    }
    return count;
  }

  #gave(count: number, flush: boolean): number {
    if (count > 0) {
      this.counts.bytesWritten += count;
      this.#owed |= WRITTEN;
      if (flush) this.flush();
    }
    return count;
  }

  #expectFit(length: number, size: number): void {
    if (length > size)
      throw new XentoolError("usage", `${length} bytes at once can never pass a ring of ${size} bytes`);
  }

  #sayEnd(word: number): void {
    if (this.#saidEnd) return;
    this.#saidEnd = true;
    const at = this.#parts.layout.endWordsAt + (this.role === "server" ? 0 : 4);
    Atomics.store(this.#parts.page.words, at / 4, word);
    this.#owed |= WRITTEN;
    this.flush();
  }

  #afterEndError(): XentoolError {
    return new XentoolError(
      "protocol",
      `domain ${this.peer} broke the vchan protocol: it wrote on after it had said that its stream has ended`,
      { domid: this.peer },
    );
  }

  #closedError(): XentoolError {
    return new XentoolError("io", `domain ${this.peer} has closed the vchan`, { domid: this.peer });
  }

  #counterError(fault: number): XentoolError {
    const value = this.#get(WORD_BAD_COUNTER);
    const [name, ours, last, size] =
      fault === XT_VCHAN_BAD_PROD
        ? ["prod", WORD_READ_CONS, WORD_READ_PROD, this.readSize]
        : ["cons", WORD_WRITE_PROD, WORD_WRITE_CONS, this.writeSize];
    const own = this.#get(ours);
    return new XentoolError(
      "protocol",
      `domain ${this.peer} broke the vchan protocol: its ${name} counter went from ${this.#get(last)} to ` +
        `${value}, which a ring of ${size} bytes does not allow with our counter at ${own}`,
      { domid: this.peer, counter: name, value, last: this.#get(last), own, size },
    );
  }
}

function ringAddress(page: Mapping, pages: Mapping | undefined, place: RingPlace): number {
  return place.offsetInPage === undefined ? (pages as Mapping).address : page.address + place.offsetInPage;
}
