// A client over the Linux kernel's device, /dev/xen/xenbus.
import { close, open, read, write } from "node:fs";
import { promisify } from "node:util";
import type { XentoolError } from "../../core/errors.ts";
import { readHeader } from "../../protocol/xs-content.ts";
import {
  encodePacket,
  encodeStrings,
  XS_ERROR,
  XS_GET_DOMAIN_PATH,
  XS_HEADER_BYTES,
  XS_PAYLOAD_MAX,
  XsPacketParser,
} from "../../protocol/xs-wire.ts";
import { cannotConnect, connectionLost } from "../errors.ts";
import type { XenstoreTransport } from "../transport.ts";

const ignore = (): void => {};

const openFile = promisify(open);

/** The errors of a write by which the kernel refuses that packet. It drops the packet, and takes the next. */
const REFUSALS: ReadonlySet<string | undefined> = new Set([
  "E2BIG",
  "EACCES",
  "EAGAIN",
  "EBUSY",
  "EEXIST",
  "EINVAL",
  "ENOENT",
  "ENOMEM",
  "ENOSPC",
  "EPERM",
]);

/** The open device. Tests have one of their own. */
export interface DeviceFile {
  read(into: Uint8Array, done: (error: NodeJS.ErrnoException | null, count: number) => void): void;
  write(packet: Uint8Array, done: (error: NodeJS.ErrnoException | null) => void): void;
  close(): void;
}

export async function openDevice(path: string): Promise<XenstoreTransport> {
  const fd = await openFile(path, "r+").catch((error: unknown) => {
    throw cannotConnect(path, error);
  });
  return new DeviceTransport(path, {
    read: (into, done) => read(fd, into, 0, into.length, null, done),
    write: (packet, done) => write(fd, packet, 0, packet.length, null, done),
    close: () => close(fd, ignore),
  });
}

/**
 * The Linux kernel's device. Reads block, so one waits in a thread of the runtime's pool. The kernel takes one packet
 * per write and discards the rest of a longer one. A read cannot be cancelled: closing sends one last harmless request,
 * whose reply wakes the read, and then closes the file, once no write is under way in another thread: the reply may be
 * there before the write has returned.
 */
export class DeviceTransport implements XenstoreTransport {
  readonly name: string;
  /** The kernel's buffer holds 4096 bytes for a packet including its header. */
  readonly payloadBytesMax = XS_PAYLOAD_MAX - XS_HEADER_BYTES;
  /**
   * The kernel handles a watch request within the write while holding a lock that the reply to any other request on the
   * same file needs. With both in progress, the kernel's xenstore is dead for the whole domain (Linux 6.1).
   */
  readonly oneAtATime = true;
  onData: (bytes: Uint8Array) => void = ignore;
  onClose: (error: XentoolError) => void = ignore;
  readonly #file: DeviceFile;
  /** Follows what is received, to see where packets end. */
  readonly #received = new XsPacketParser();
  readonly #buffer = new Uint8Array(XS_HEADER_BYTES + XS_PAYLOAD_MAX);
  #unsent: Uint8Array[] = [];
  /** Replies to requests that the kernel has refused; they wait for the end of the packet that is being received. */
  #refusals: Uint8Array[] = [];
  #writing = false;
  #closing = false;
  #released = false;

  constructor(path: string, file: DeviceFile) {
    this.name = path;
    this.#file = file;
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
    this.#file.read(this.#buffer, (error, count) => {
      if (this.#closing) this.#release();
      else if (error !== null && error.code !== "EINTR") this.#lose(error);
      else if (error === null && count === 0) this.#lose();
      else {
        if (count > 0) this.#receive(this.#buffer.slice(0, count));
        this.#read();
      }
    });
  }

  #receive(bytes: Uint8Array): void {
    this.#received.push(bytes);
    while (this.#received.next() !== undefined);
    this.onData(bytes);
    this.#passRefusals();
  }

  /** xenstored's error to a watch comes as an error of its write, and to any packet the kernel's own. */
  #refuse(packet: Uint8Array, errno: string): void {
    const { reqId = 0, txId = 0 } = readHeader(packet) ?? {};
    this.#refusals.push(encodePacket(XS_ERROR, reqId, txId, encodeStrings(errno)));
    this.#passRefusals();
  }

  #passRefusals(): void {
    if (this.#received.bufferedBytes > 0) return;
    for (const refusal of this.#refusals.splice(0)) this.onData(refusal);
  }

  #writeNext(): void {
    if (this.#writing) return;
    const packet = this.#unsent.shift();
    if (packet === undefined) return;
    this.#writing = true;
    this.#file.write(packet, (error) => {
      this.#writing = false;
      if (this.#released) return this.#file.close();
      if (error !== null && !this.#closing) {
        if (!REFUSALS.has(error.code)) return this.#lose(error);
        this.#refuse(packet, error.code as string);
      }
      this.#writeNext();
    });
  }

  #lose(cause?: unknown): void {
    this.#closing = true;
    this.#release();
    this.onClose(connectionLost(this.name, cause));
  }

  #release(): void {
    if (this.#released) return;
    this.#released = true;
    this.#unsent = [];
    if (!this.#writing) this.#file.close();
  }
}
