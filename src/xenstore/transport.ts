// Ways to a xenstore server that are files: an AF_UNIX socket, and the kernel's character device
// /dev/xen/xenbus. A transport carries whole packets out and bytes in; the client above matches them.
import { close, open, read, write } from "node:fs";
import { promisify } from "node:util";
import { XentoolError } from "../core/errors.ts";
import { RingTransport } from "./ring-transport.ts";
import type { StoreRing, XenstoreEndpoint } from "../platform/platform.ts";
import {
  encodePacket,
  encodeStrings,
  XS_GET_DOMAIN_PATH,
  XS_HEADER_BYTES,
  XS_PAYLOAD_MAX,
} from "../protocol/xs-wire.ts";
import { connectionLost } from "./errors.ts";

export interface XenstoreTransport {
  /** What it is connected to, for messages. */
  readonly name: string;
  /** The longest payload that it carries. */
  readonly payloadBytesMax: number;
  /** A request may be written only when the one before has been answered. */
  readonly oneAtATime?: boolean;
  /** Gets what the server sent, in pieces of any size. Set it before the first write. */
  onData: (bytes: Uint8Array) => void;
  /** Runs once when the server's end is gone; not after `close`. */
  onClose: (error: XentoolError) => void;
  /** Sends one whole packet. Never blocks; what does not fit yet is kept. */
  write(packet: Uint8Array): void;
  close(): void;
}

const ignore = (): void => {};

/**
 * Opens `endpoint` within `timeoutMs`. Fails with `environment` when there is nothing to connect to and
 * with `timeout` when opening hangs, as the device does while no xenstored runs.
 */
export async function openTransport(
  endpoint: XenstoreEndpoint,
  timeoutMs: number,
): Promise<XenstoreTransport> {
  const opening = openEndpoint(endpoint, timeoutMs);
  let timer: ReturnType<typeof setTimeout> | undefined;
  const timeout = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => {
      opening.then((late) => late.close(), ignore);
      reject(
        new XentoolError(
          "timeout",
          `${endpoint.path} did not open within ${timeoutMs} ms; does xenstored run?`,
        ),
      );
    }, timeoutMs);
  });
  try {
    return await Promise.race([opening, timeout]);
  } finally {
    clearTimeout(timer);
  }
}

function openEndpoint(endpoint: XenstoreEndpoint, timeoutMs: number): Promise<XenstoreTransport> {
  switch (endpoint.kind) {
    case "socket":
      return openSocket(endpoint.path);
    case "device":
      return openDevice(endpoint.path);
    case "ring":
      return openRing(endpoint.open(), timeoutMs);
  }
}

async function openRing(ring: StoreRing, timeoutMs: number): Promise<XenstoreTransport> {
  try {
    return await RingTransport.connect(ring, timeoutMs);
  } catch (error) {
    ring.close?.();
    throw error;
  }
}

function cannotOpen(path: string, cause: unknown): XentoolError {
  return new XentoolError("environment", `cannot connect to xenstore at ${path}`, { path }, cause);
}

async function openSocket(path: string): Promise<XenstoreTransport> {
  const transport = new SocketTransport(path);
  try {
    transport.socket = await Bun.connect({
      unix: path,
      socket: {
        data: (_socket, bytes) => transport.onData(bytes),
        drain: () => transport.flush(),
        close: (_socket, error) => transport.lose(error),
        error: (_socket, error) => transport.lose(error),
      },
    });
  } catch (error) {
    throw cannotOpen(path, error);
  }
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

  /** Sends what the socket takes; the rest goes out when it drains. */
  flush(): void {
    while (this.#unsent.length > 0) {
      const head = this.#unsent[0] as Uint8Array;
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

const openFile = promisify(open);
const closeFile = promisify(close);

async function openDevice(path: string): Promise<XenstoreTransport> {
  const fd = await openFile(path, "r+").catch((error: unknown) => {
    throw cannotOpen(path, error);
  });
  return new DeviceTransport(path, fd);
}

/**
 * The device of the Linux kernel. Reads block, so one waits in a thread of the runtime's pool. The kernel
 * takes one packet a write and throws the rest of a longer one away. A read cannot be cancelled: closing
 * sends one last harmless request, whose reply wakes the read, and then closes the file.
 */
class DeviceTransport implements XenstoreTransport {
  readonly name: string;
  /** The kernel's buffer holds a packet of 4096 bytes with its header. */
  readonly payloadBytesMax = XS_PAYLOAD_MAX - XS_HEADER_BYTES;
  /**
   * The kernel handles a request to watch within the write, with a lock held that the reply to any other request
   * of the same file needs: both at once, and its xenstore is dead for the whole domain (Linux 6.1).
   */
  readonly oneAtATime = true;
  onData: (bytes: Uint8Array) => void = ignore;
  onClose: (error: XentoolError) => void = ignore;
  readonly #fd: number;
  readonly #buffer = new Uint8Array(XS_HEADER_BYTES + XS_PAYLOAD_MAX);
  #unsent: Uint8Array[] = [];
  #writing = false;
  #closing = false;
  #released = false;

  constructor(path: string, fd: number) {
    this.name = path;
    this.#fd = fd;
    this.#read();
  }

  write(packet: Uint8Array): void {
    if (this.#closing) return;
    this.#unsent.push(packet);
    this.#writeNext();
  }

  close(): void {
    if (this.#closing) return;
    this.#unsent = [];
    this.write(encodePacket(XS_GET_DOMAIN_PATH, 0xffff_ffff, 0, encodeStrings("0")));
    this.#closing = true;
  }

  #read(): void {
    read(this.#fd, this.#buffer, 0, this.#buffer.length, null, (error, count) => {
      if (this.#closing) this.#release();
      else if (error !== null && error.code !== "EINTR") this.#lose(error);
      else if (error === null && count === 0) this.#lose();
      else {
        if (count > 0) this.onData(this.#buffer.slice(0, count));
        this.#read();
      }
    });
  }

  #writeNext(): void {
    if (this.#writing) return;
    const packet = this.#unsent.shift();
    if (packet === undefined) return;
    this.#writing = true;
    write(this.#fd, packet, 0, packet.length, null, (error) => {
      this.#writing = false;
      if (error !== null && !this.#closing) this.#lose(error);
      else this.#writeNext();
    });
  }

  #lose(cause?: unknown): void {
    this.#closing = true;
    this.#unsent = [];
    this.#release();
    this.onClose(connectionLost(this.name, cause));
  }

  #release(): void {
    if (this.#released) return;
    this.#released = true;
    closeFile(this.#fd).catch(ignore);
  }
}
