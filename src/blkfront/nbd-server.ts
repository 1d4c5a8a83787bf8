// The NBD server's one loop: it handles the ring, the clients' sockets and orders from the main thread, and blocks in
// only one place. Clients take turns at going first, and none can hold what the others need. A client that has the
// disk keeps it however long it is idle, because a mounted file system may be idle; one that is still negotiating
// makes room for others when there is none.
import { errnoName, shim } from "../native/shim.ts";
import type { NbdExport } from "../protocol/nbd.ts";
import type { FrontControl } from "./blkfront-control.ts";
import { NbdCommands } from "./nbd-commands.ts";
import { DEAD, HANDSHAKE, NbdConnection, READY } from "./nbd-connection.ts";
import { exportOf } from "./nbd-export.ts";
import { POLL_GONE, POLLIN, POLLOUT, PollSet } from "./poll-set.ts";
import type { FrontQueue } from "./queue.ts";

/** Each has up to 2.5 MiB for what is in flight, and next to nothing while it is idle. */
const MAX_CONNECTIONS = 1024;
/** A handshake takes milliseconds. One that takes this long makes room for others, if there is none. */
const HANDSHAKE_MS = 3000;
/** When there is no room for the next client, accepting resumes once a client has left, or after this time. */
const ACCEPT_AGAIN_MS = 500;
const SHORTAGES: ReadonlySet<string> = new Set(["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]);
/** Short, because clients wait meanwhile and need the processor. */
const MAX_POLL_US = 50;
const ACCEPTS_AT_ONCE = 16;
/** Indices of the descriptors that are always polled; connections follow. */
const AT_RING = 0;
const AT_CONTROL = 1;
const AT_LISTENER = 2;
const AT_CONNECTIONS = 3;
const UNUSED_FD = -1;
const NO_PLACE = -1;

export class NbdServer {
  readonly #queue: FrontQueue;
  readonly #control: FrontControl;
  readonly #listener: number;
  readonly #name: string;
  readonly #commands: NbdCommands;
  readonly #connections: NbdConnection[] = [];
  readonly #polled = new PollSet(AT_CONNECTIONS + MAX_CONNECTIONS);
  #turn = 0;
  /** Until then no new client is accepted, for lack of room; it waits in the listener's queue. */
  #acceptAgainAtMs = 0;

  /** Serves the disk of `queue`, which has `tags` tags, as the export `name` to clients of `listener`. */
  constructor(queue: FrontQueue, tags: number, control: FrontControl, listener: number, name: string) {
    this.#queue = queue;
    this.#control = control;
    this.#listener = listener;
    this.#name = name;
    this.#commands = new NbdCommands(queue, control.disk, tags);
    queue.doorbell.poll.maxUs = MAX_POLL_US;
  }

  /** Serves until `control` stops it and what is in flight is answered, or the backend breaks the protocol. */
  run(): void {
    const queue = this.#queue;
    for (;;) {
      const responses = queue.reap();
      const stopping = !this.#control.runs;
      if (queue.failure !== undefined || this.#control.released) return;
      this.#commands.retryFlushes();
      if (!stopping) this.#advance();
      queue.push();
      const roomMade = this.#send();
      this.#bury();
      if (stopping && queue.inFlight === 0) return;
      const busy = responses > 0 || roomMade || !queue.maySleep();
      this.#wait(busy ? 0 : -1, stopping);
    }
  }

  /** Closes every connection and frees everything. The queue and the listener belong to their owners. */
  close(): void {
    for (const connection of this.#connections) connection.close();
    this.#connections.length = 0;
    this.#polled.close();
  }

  #advance(): void {
    const connections = this.#connections;
    const count = connections.length;
    this.#turn++;
    for (let index = 0; index < count; index++) {
      const connection = connections[(this.#turn + index) % count];
      if (connection.state === HANDSHAKE) connection.negotiate();
      if (connection.state === READY) this.#commands.advance(connection);
    }
  }

  /** True when a request that found no room before may find some now. */
  #send(): boolean {
    let roomMade = false;
    for (const connection of this.#connections) if (connection.send()) roomMade = true;
    return roomMade;
  }

  /** Removes dead connections once nothing of theirs is on the ring. */
  #bury(): void {
    const connections = this.#connections;
    for (let index = connections.length - 1; index >= 0; index--) {
      const connection = connections[index];
      if (connection.state !== DEAD || !this.#commands.abandon(connection)) continue;
      connection.close();
      connections.splice(index, 1);
      this.#acceptAgainAtMs = 0;
    }
  }

  #wait(timeoutMs: number, stopping: boolean): void {
    const polled = this.#polled;
    const queue = this.#queue;
    const connections = this.#connections;
    polled.clear();
    polled.add(queue.doorbell.fd, POLLIN);
    polled.add(this.#control.wakeFd, POLLIN);
    const isCrowded = this.#acceptAgainAtMs > performance.now();
    polled.add(stopping || isCrowded ? UNUSED_FD : this.#listener, POLLIN);
    const count = connections.length;
    for (let index = 0; index < count; index++) {
      const connection = connections[index];
      const receives = connection.wantsToReceive && !stopping ? POLLIN : 0;
      const sends = connection.wantsToSend ? POLLOUT : 0;
      polled.add(connection.state === DEAD ? UNUSED_FD : connection.fd, receives | sends);
    }
    const ready = polled.wait(timeoutMs < 0 && isCrowded ? ACCEPT_AGAIN_MS : timeoutMs);
    queue.woke(polled.seen(AT_RING) !== 0);
    if (!ready) return;
    if (polled.seen(AT_CONTROL) !== 0) this.#takeOrders();
    for (let index = 0; index < count; index++) {
      const connection = connections[index];
      const seen = polled.seen(AT_CONNECTIONS + index);
      if ((seen & POLLOUT) !== 0) connection.sendable();
      if ((seen & POLLIN) !== 0) connection.receive();
      else if ((seen & POLL_GONE) !== 0) connection.kill();
    }
    if (polled.seen(AT_LISTENER) !== 0) this.#accept();
  }

  #takeOrders(): void {
    this.#control.drain();
    this.#commands.disk = this.#control.disk;
  }

  #accept(): void {
    for (let count = 0; count < ACCEPTS_AT_ONCE; count++) {
      const isFull = this.#connections.length === MAX_CONNECTIONS;
      const fd = isFull ? NO_PLACE : shim.xt_stream_accept(this.#listener);
      if (fd >= 0) this.#connections.push(new NbdConnection(fd, () => this.#exported()));
      else if (!isFull && !SHORTAGES.has(errnoName(fd))) return;
      else if (!this.#makePlace()) {
        this.#acceptAgainAtMs = performance.now() + ACCEPT_AGAIN_MS;
        return;
      }
    }
  }

  #exported(): NbdExport {
    return exportOf(this.#commands.disk, this.#name, this.#commands.chunkBytes);
  }

  /** Drops the client that has been negotiating longest, if that is long: it may never finish. */
  #makePlace(): boolean {
    const oldest = this.#connections.find((it) => it.state === HANDSHAKE);
    if (oldest === undefined || performance.now() - oldest.sinceMs < HANDSHAKE_MS) return false;
    oldest.close();
    this.#connections.splice(this.#connections.indexOf(oldest), 1);
    return true;
  }
}
