// Connections over AF_UNIX sockets. A socket belongs to one domain: whoever can open it acts as that domain.
import { rmSync } from "node:fs";
import { XentoolError } from "../../core/errors.ts";
import type { Channel, Connection } from "./connection.ts";

class SocketChannel implements Channel {
  readonly #socket: Bun.Socket<Connection | undefined>;
  #reading = true;

  constructor(socket: Bun.Socket<Connection | undefined>) {
    this.#socket = socket;
  }

  write(bytes: Uint8Array): number {
    return Math.max(0, this.#socket.write(bytes));
  }

  setReading(wanted: boolean): void {
    if (wanted === this.#reading) return;
    this.#reading = wanted;
    if (wanted) this.#socket.resume();
    else this.#socket.pause();
  }

  violation(): void {
    this.#socket.data?.close();
  }

  close(): void {
    this.#socket.terminate();
  }
}

export interface SocketListener {
  readonly path: string;
  /** Accepts no further connections and removes the socket file. Existing connections remain. */
  close(): void;
}

/** Listens at `path`. `accept` creates each client's connection, or returns undefined to refuse it. */
export function listenOnSocket(
  path: string,
  accept: (channel: Channel) => Connection | undefined,
): SocketListener {
  try {
    const server = Bun.listen<Connection | undefined>({
      unix: path,
      socket: {
        open(socket) {
          socket.data = accept(new SocketChannel(socket));
          if (socket.data === undefined) socket.terminate();
        },
        data: (socket, bytes) => socket.data?.receive(bytes),
        drain: (socket) => socket.data?.writable(),
        close: (socket) => socket.data?.close(),
        error: (socket) => socket.data?.close(),
      },
    });
    const close = (): void => {
      server.stop();
      rmSync(path, { force: true });
    };
    return { path, close };
  } catch (error) {
    throw new XentoolError("environment", `cannot listen for xenstore clients at ${path}`, { path }, error);
  }
}
