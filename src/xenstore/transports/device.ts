// A client over the Linux kernel's device, /dev/xen/xenbus.
import { close, open, read, write } from "node:fs";
import { promisify } from "node:util";
import type { XentoolError } from "../../core/errors.ts";
import {
  encodePacket,
  encodeStrings,
  XS_GET_DOMAIN_PATH,
  XS_HEADER_BYTES,
  XS_PAYLOAD_MAX,
} from "../../protocol/xs-wire.ts";
import { cannotConnect, connectionLost } from "../errors.ts";
import type { XenstoreTransport } from "../transport.ts";

const ignore = (): void => {};

const openFile = promisify(open);
const closeFile = promisify(close);

export async function openDevice(path: string): Promise<XenstoreTransport> {
  const fd = await openFile(path, "r+").catch((error: unknown) => {
    throw cannotConnect(path, error);
  });
  return new DeviceTransport(path, fd);
}

/**
 * The Linux kernel's device. Reads block, so one waits in a thread of the runtime's pool. The kernel takes one packet
 * per write and discards the rest of a longer one. A read cannot be cancelled: closing sends one last harmless request,
 * whose reply wakes the read, and then closes the file, once no write is under way in another thread: the reply may be
 * there before the write has returned.
 */
class DeviceTransport implements XenstoreTransport {
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
      if (this.#released) this.#closeFile();
      else if (error !== null && !this.#closing) this.#lose(error);
      else this.#writeNext();
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
    if (!this.#writing) this.#closeFile();
  }

  #closeFile(): void {
    closeFile(this.#fd).catch(ignore);
  }
}
