// The port to a xenstore server, independent of what carries it: whole packets go out, bytes come in, and the client
// above matches them. Its adapters are in transports/.
import type { XentoolError } from "../core/errors.ts";

export interface XenstoreTransport {
  /** The peer's name in messages. */
  readonly name: string;
  /** Maximum payload in bytes. */
  readonly payloadBytesMax: number;
  /** If true, a request may be written only after the previous one has been answered. */
  readonly oneAtATime?: boolean;
  /** Called with what the server sent, in pieces of any size. Set it before the first write. */
  onData: (bytes: Uint8Array) => void;
  /** Called once when the server's end is gone, but not after `close`. */
  onClose: (error: XentoolError) => void;
  /** Sends one complete packet. Never blocks: what does not fit yet is queued. */
  write(packet: Uint8Array): void;
  close(): void;
}
