// A client over an AF_UNIX socket, as provided by xenstored and the simulated host.
import type { XentoolError } from "../../core/errors.ts";
import { isListening } from "../../native/unix-listener.ts";
import { XS_PAYLOAD_MAX } from "../../protocol/xs-wire.ts";
import { cannotConnect, connectionLost } from "../errors.ts";
import type { XenstoreTransport } from "../transport.ts";

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

async function connect(path: string): Promise<XenstoreTransport> {
  const transport = new SocketTransport(path);
  transport.socket = await Bun.connect({
    unix: path,
    socket: {
      data: (_socket, bytes) => transport.onData(bytes),
      drain: () => transport.flush(),
      close: (_socket, error) => transport.lose(error),
      error: (_socket, error) => transport.lose(error),
    },
  });
  return transport;
}

class SocketTransport implements XenstoreTransport {
  readonly name: string;
  readonly payloadBytesMax = XS_PAYLOAD_MAX;
  socket: Bun.Socket | undefined;
  onData: (bytes: Uint8Array) => void = ignore;
  onClose: (error: XentoolError) => void = ignore;
  #unsent: Uint8Array[] = [];
  #closed = false;

  constructor(path: string) {
    this.name = path;
  }

  write(packet: Uint8Array): void {
    if (this.#closed) return;
    this.#unsent.push(packet);
    if (this.#unsent.length === 1) this.flush();
  }

  /** Sends what the socket takes; the rest is sent when it drains. */
  flush(): void {
    while (this.#unsent.length > 0) {
      const head = this.#unsent[0];
      const sent = Math.max(0, this.socket?.write(head) ?? 0);
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
