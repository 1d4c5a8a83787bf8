// A client over an AF_UNIX socket, as provided by xenstored and the simulated host.
import type { XentoolError } from "../../core/errors.ts";
import { isListening } from "../../native/unix-listener.ts";
import { XS_PAYLOAD_MAX } from "../../protocol/xs-wire.ts";
import { cannotConnect, connectionLost } from "../errors.ts";
import type { XenstoreTransport } from "../transport.ts";

declare module "bun" {
  /** The types of Bun have the options, and not the function that takes them. */
  function connect<Data = undefined>(options: FdSocketOptions<Data>): Promise<Socket<Data>>;
}

const BUSY_RETRY_MS = 10;
const ignore = (): void => {};

/**
 * Connects within `timeoutMs`. xenstored and oxenstored let only one connection queue; others wait here for their turn,
 * as they do in libxenstore.
 */
export async function openSocket(path: string, timeoutMs: number): Promise<XenstoreTransport> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    try {
      return await connect(path);
    } catch (error) {
      // Bun says ECONNREFUSED for a full queue, too.
      if (performance.now() >= deadline || !isListening(path)) throw cannotConnect(path, error);
      await Bun.sleep(BUSY_RETRY_MS);
    }
  }
}

/** Over a socket that is connected already; `name` is that of its other end, which may have sent something by now. */
export function openInherited(
  fd: number,
  name: string,
  onData: (bytes: Uint8Array) => void = ignore,
): Promise<SocketTransport> {
  return opened({ fd }, name, onData);
}

function connect(path: string): Promise<SocketTransport> {
  return opened({ unix: path }, path);
}

async function opened(
  at: { readonly fd: number } | { readonly unix: string },
  name: string,
  onData: (bytes: Uint8Array) => void = ignore,
): Promise<SocketTransport> {
  const transport = new SocketTransport(name);
  transport.onData = onData;
  const socket: Bun.SocketHandler<undefined> = {
    data: (_socket, bytes) => transport.onData(bytes),
    drain: () => transport.flush(),
    close: (_socket, error) => transport.lose(error),
    error: (_socket, error) => transport.lose(error),
  };
  transport.socket = await ("fd" in at ? Bun.connect({ ...at, socket }) : Bun.connect({ ...at, socket }));
  return transport;
}

export class SocketTransport implements XenstoreTransport {
  readonly name: string;
  readonly payloadBytesMax = XS_PAYLOAD_MAX;
  socket: Bun.Socket | undefined;
  onData: (bytes: Uint8Array) => void = ignore;
  onClose: (error: XentoolError) => void = ignore;
  #unsent: Uint8Array[] = [];
  #unsentBytes = 0;
  #closed = false;
  #reading = true;

  constructor(path: string) {
    this.name = path;
  }

  write(packet: Uint8Array): void {
    if (this.#closed) return;
    this.#unsent.push(packet);
    this.#unsentBytes += packet.length;
    if (this.#unsent.length === 1) this.flush();
  }

  get unsentBytes(): number {
    return this.#unsentBytes;
  }

  /** Whether more is to be received now. */
  setReading(wanted: boolean): void {
    if (wanted === this.#reading || this.#closed) return;
    this.#reading = wanted;
    if (wanted) this.socket?.resume();
    else this.socket?.pause();
  }

  /** Sends what the socket takes; the rest is sent when it drains. */
  flush(): void {
    while (this.#unsent.length > 0) {
      const head = this.#unsent[0];
      const sent = Math.max(0, this.socket?.write(head) ?? 0);
      this.#unsentBytes -= sent;
      if (sent < head.length) {
        this.#unsent[0] = head.subarray(sent);
        return;
      }
      this.#unsent.shift();
    }
  }

  lose(cause?: unknown): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#unsent = [];
    this.onClose(connectionLost(this.name, cause));
  }

  close(): void {
    this.#closed = true;
    this.#unsent = [];
    this.socket?.terminate();
  }
}
