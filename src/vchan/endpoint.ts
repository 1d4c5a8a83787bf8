// One end of a vchan: the data plane. Everything here is synchronous and allocates nothing per transfer; only `wait`
// blocks. Closing notifies the peer and releases every page, port and handle. Protocol: io/libxenvchan.h;
// docs/vchan.md lists what this does better than libxenvchan.
import { XentoolError } from "../core/errors.ts";
import type { Domid, EvtchnPort } from "../core/types.ts";
import { XT_VCHAN, XT_VCHAN_BAD_PROD, XT_VCHAN_READ, XT_VCHAN_WRITTEN } from "../native/abi.ts";
import { allocateMemory, type Mapping } from "../native/memory.ts";
import { Reactor } from "../native/reactor.ts";
import { shim } from "../native/shim.ts";
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
import { WATCHES } from "./bounds.ts";
import { VchanSleeper } from "./sleeper.ts";

export type VchanRole = "server" | "client";

/** The peer wrote, or read, since the last sample: bits for what `wait` waits for. */
export const WRITTEN = XT_VCHAN_WRITTEN;
export const READ = XT_VCHAN_READ;

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

export interface EndpointParts {
  readonly role: VchanRole;
  readonly peer: Domid;
  /** The shared page. */
  readonly page: Mapping;
  readonly layout: VchanLayout;
  /** The pages of the rings that do not lie in the shared page. */
  readonly leftPages: Mapping | undefined;
  readonly rightPages: Mapping | undefined;
  readonly channels: EventChannels;
  readonly port: EvtchnPort;
  /** Where our two counters stand. */
  readonly readCounter: number;
  readonly writeCounter: number;
  /** False: sleep at once, without polling. */
  readonly looks?: boolean | undefined;
  /** Releases mappings, port and handles; runs once. */
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
  /** Where `wait` sleeps. What is watched here as well ends it, too. */
  readonly reactor: Reactor;
  readonly readSize: number;
  readonly writeSize: number;
  readonly counts: VchanCounts = { bytesRead: 0, bytesWritten: 0, eventsSent: 0, eventsReceived: 0 };
  readonly #parts: EndpointParts;
  readonly #state: Mapping;
  readonly #words: Uint32Array<ArrayBuffer>;
  readonly #sleeper: VchanSleeper;
  #owed = 0;
  #saidEnd = false;
  /** The end word that the peer has set and may not take back; 0 until then. */
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
    // All that is known of the peer's counters is that they lie within a ring's size of ours.
    this.#set(WORD_READ_PROD, parts.readCounter);
    this.#set(WORD_WRITE_CONS, parts.writeCounter - write.sizeBytes);
    this.#set(WORD_PEER_LIVE, isServer ? VCHAN_NOT_CONNECTED : 1);
    // It has descriptors to wait for, but no operations: poll(2) does that with less than io_uring needs.
    this.reactor = Reactor.open(1, "sync", WATCHES);
    const { channels, port, looks } = parts;
    this.#sleeper = new VchanSleeper(this.reactor, this.#state, channels, port, looks !== false);
  }

  get port(): EvtchnPort {
    return this.#parts.port;
  }

  /** The shared page, for tests that play a hostile peer. */
  get page(): Mapping {
    return this.#parts.page;
  }

  /** Bytes that were ready to be read at the last sample. */
  get readable(): number {
    return (this.#get(WORD_READ_PROD) - this.#get(WORD_READ_CONS)) >>> 0;
  }

  /** Bytes that there was room for at the last sample. */
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

  /** The peer closed or died. What it wrote before that can still be read. */
  get peerClosed(): boolean {
    return this.#peerClosed;
  }

  /** The peer understands end words: either end can mark the end of its stream while the vchan stays open. */
  get peerSpeaksOfEnd(): boolean {
    return speaksOfEnd(this.#get(WORD_PEER_END));
  }

  /** The peer vanished in the middle of its stream, as far as we can tell. */
  get peerLost(): boolean {
    return this.#peerClosed && !this.peerEnded && (this.#peerLost || this.peerSpeaksOfEnd);
  }

  /** The peer said that it will not write any more. */
  get peerEnded(): boolean {
    return this.#peerEnd !== 0;
  }

  /** The peer said that it had to end before its stream did. */
  get peerCut(): boolean {
    return this.#peerEnd === VCHAN_END_CUT;
  }

  /** Nothing more will come, and everything that came has been read. */
  get atEnd(): boolean {
    return (this.#peerClosed || this.peerEnded) && this.readable === 0;
  }

  /**
   * Declares the peer's domain gone when somebody else found out, since no event will report it. It may have closed
   * before.
   */
  declarePeerDead(): void {
    this.sample();
    if (!this.#peerClosed) this.#peerLost = true;
    this.#peerClosed = true;
  }

  /**
   * Samples the peer's state: first whether it lives and has ended, then its counters, so that everything it wrote
   * before that is found. Fails with `protocol` when a counter is impossible or moves after the end.
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

  /** Reads what is there, up to the length of `into`. Returns the number of bytes; 0: none now (see `atEnd`). */
  read(into: Uint8Array): number {
    this.sample();
    return this.#took(shim.xt_vchan_read(this.#state.bytes, into, into.length), true);
  }

  /** Writes what fits now. Returns the number of bytes. Fails with `io` when the peer has closed. */
  write(from: Uint8Array): number {
    this.sample();
    if (this.#peerClosed) throw this.#closedError();
    return this.#gave(shim.xt_vchan_write(this.#state.bytes, from, from.length), true);
  }

  /**
   * Fills `into`, or does nothing and returns false. There are no records: bytes are taken as they come. Fails with
   * `io` when that many bytes will never come.
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

  /** Writes all of `from`, or does nothing and returns false. */
  send(from: Uint8Array): boolean {
    this.#expectFit(from.length, this.writeSize);
    this.sample();
    if (this.#peerClosed) throw this.#closedError();
    if (this.writable < from.length) return false;
    this.#gave(shim.xt_vchan_write(this.#state.bytes, from, from.length), true);
    return true;
  }

  /**
   * One read(2) of up to `max` bytes from `fd` into the ring, limited to the free room of the last sample. Returns
   * the number of bytes, 0 at the end of the file, or -errno. The peer is notified at the next `flush` or `wait`.
   */
  fill(fd: number, isSocket: boolean, max: number): number {
    return this.#gave(shim.xt_vchan_fill(this.#state.bytes, fd, isSocket ? 1 : 0, max), false);
  }

  /**
   * One write(2) of up to `max` bytes from the ring to `fd`. Returns the number of bytes or -errno. Otherwise like
   * `fill`.
   */
  drain(fd: number, isSocket: boolean, max: number): number {
    return this.#took(shim.xt_vchan_drain(this.#state.bytes, fd, isSocket ? 1 : 0, max), false);
  }

  /**
   * Tells a peer that understands end words that we will not write any more. Reading goes on. Only the first end
   * counts.
   */
  endStream(): void {
    this.#sayEnd(VCHAN_END_REACHED);
  }

  /** Like `endStream`, but there would have been more to write, so the peer must not take the stream for complete. */
  cutStream(): void {
    this.#sayEnd(VCHAN_END_CUT);
  }

  /** Sends the peer an event if it asked to be notified of what we did since the last flush. */
  flush(): void {
    if (this.#owed === 0) return;
    const asked = shim.xt_vchan_take_request(this.#state.bytes, this.#owed);
    this.#owed = 0;
    if (asked !== 0) this.notifyPeer();
  }

  /** Sends the peer an event even if it did not ask. */
  notifyPeer(): void {
    this.counts.eventsSent++;
    this.#parts.channels.notify(this.#parts.port);
  }

  /**
   * Waits until the peer did one of `wants`, ended its stream or closed, a descriptor watched in `reactor` is ready, or
   * the time is up (-1: never). Returns false when nothing happened, which a signal can also cause. Does not sample.
   */
  wait(wants: number, timeoutMs: number): boolean {
    this.flush();
    const found = this.#sleeper.wait(wants, timeoutMs);
    this.counts.eventsReceived = this.#sleeper.events;
    return found;
  }

  /** Tells the peer that we are gone and releases everything. Closing twice is harmless. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    const ownLive = this.role === "server" ? VCHAN_SRV_LIVE : VCHAN_CLI_LIVE;
    shim.xt_store8(this.#parts.page.bytes.subarray(ownLive), VCHAN_GONE);
    this.notifyPeer();
    this.reactor.close();
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
