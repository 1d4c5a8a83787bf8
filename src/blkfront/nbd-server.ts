// The NBD server's one loop: it handles the ring, the clients' sockets and orders from the main thread, and blocks in
// only one place. Clients take turns at going first, and none can hold what the others need. A client that has the
// disk keeps it however long it is idle, because a mounted file system may be idle; one that is still negotiating
// makes room for others when there is none.
import { Reactor, POLLIN } from "../native/reactor.ts";
import { check, errnoName, shim } from "../native/shim.ts";
import type { NbdExport } from "../protocol/nbd.ts";
import {
  ACCEPTS_AT_ONCE,
  ACCEPT_AGAIN_MS,
  NBD_HANDSHAKE_MS,
  MAX_CONNECTIONS,
  NBD_POLL_US_MAX,
  OTHER_WATCHES,
} from "./bounds.ts";
import type { FrontControl } from "./blkfront-control.ts";
import { NbdCommands } from "./nbd-commands.ts";
import { DEAD, HANDSHAKE, NbdConnection, READY } from "./nbd-connection.ts";
import { exportOf } from "./nbd-export.ts";
import type { FrontDataPlane } from "./data-plane.ts";

const SHORTAGES: ReadonlySet<string> = new Set(["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]);
const NO_PLACE = -1;

export class NbdServer {
  readonly #plane: FrontDataPlane;
  readonly #control: FrontControl;
  readonly #listener: number;
  readonly #name: string;
  readonly #commands: NbdCommands;
  readonly #connections: NbdConnection[] = [];
  readonly #reactor = Reactor.open(1, "sync", OTHER_WATCHES + MAX_CONNECTIONS);
  readonly #listening: number;
  #isListening = true;
  #turn = 0;
  /** Until then no new client is accepted, for lack of room; it waits in the listener's queue. */
  #acceptAgainAtMs = 0;

  /** Serves the disk of `plane`, which has `tags` tags, as the export `name` to clients of `listener`. */
  constructor(plane: FrontDataPlane, tags: number, control: FrontControl, listener: number, name: string) {
    this.#plane = plane;
    this.#control = control;
    this.#listener = listener;
    this.#name = name;
    this.#commands = new NbdCommands(plane, control.disk, tags);
    plane.doorbell.poll.maxUs = NBD_POLL_US_MAX;
    this.#reactor.watch(plane.doorbell.fd, () => plane.woke());
    this.#reactor.watch(control.wakeFd, () => this.#takeOrders());
    this.#listening = this.#reactor.watch(listener, () => this.#accept());
  }

  /** Serves until `control` stops it and what is in flight is answered, or the backend breaks the protocol. */
  run(): void {
    const plane = this.#plane;
    for (;;) {
      const responses = plane.reap();
      const stopping = !this.#control.runs;
      if (plane.failure !== undefined || this.#control.released) return;
      this.#commands.retryFlushes();
      if (!stopping) this.#advance();
      plane.push();
      const roomMade = this.#send();
      this.#bury();
      if (stopping && plane.inFlight === 0) return;
      const busy = responses > 0 || roomMade || !plane.maySleep();
      this.#wait(busy ? 0 : -1, stopping);
    }
  }

  /** Closes every connection and frees everything. The data plane and the listener belong to their owners. */
  close(): void {
    for (const connection of this.#connections) connection.close();
    this.#connections.length = 0;
    this.#reactor.close();
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
    const reactor = this.#reactor;
    const isCrowded = this.#acceptAgainAtMs > performance.now();
    const listens = !stopping && !isCrowded;
    if (listens !== this.#isListening) reactor.rewatch(this.#listening, listens ? POLLIN : 0);
    this.#isListening = listens;
    for (const connection of this.#connections) connection.watchSocket(!stopping);
    const limitMs = timeoutMs < 0 && isCrowded ? ACCEPT_AGAIN_MS : timeoutMs;
    check(reactor.wait(timeoutMs === 0 ? 0 : 1, limitMs < 0 ? -1 : limitMs * 1000), "wait for clients");
    reactor.dispatch();
  }

  #takeOrders(): void {
    this.#control.drain();
    this.#commands.disk = this.#control.disk;
  }

  #accept(): void {
    for (let count = 0; count < ACCEPTS_AT_ONCE; count++) {
      const isFull = this.#connections.length === MAX_CONNECTIONS;
      const fd = isFull ? NO_PLACE : shim.xt_stream_accept(this.#listener);
      if (fd >= 0) this.#connections.push(new NbdConnection(fd, this.#reactor, () => this.#exported()));
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
    if (oldest === undefined || performance.now() - oldest.sinceMs < NBD_HANDSHAKE_MS) return false;
    oldest.close();
    this.#connections.splice(this.#connections.indexOf(oldest), 1);
    return true;
  }
}
