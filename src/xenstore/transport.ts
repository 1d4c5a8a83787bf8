// The port to a xenstore server, whatever carries it: whole packets go out and bytes come in; the client above
// matches them. Its adapters are in transports/.
import type { XentoolError } from "../core/errors.ts";

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
