// Follows one stream of a ring by looking at it now and then. Bytes become packets; those that were overwritten
// before they were seen are counted, never guessed. After a loss it searches for the next boundary, and what lies
// before that counts as lost as well.
import { readHeader, type XsDirection, type XsHeader } from "../protocol/xs-content.ts";
import { findPackets, streamBytes, type RingStreamView } from "../protocol/xs-ring-view.ts";
import { XS_RING_BYTES } from "../protocol/xs-ring.ts";
import { XS_HEADER_BYTES, XS_PAYLOAD_MAX } from "../protocol/xs-wire.ts";
import { UNKNOWN_BYTES_MAX } from "./bounds.ts";

/** What was seen of a stream, in order. */
export type Followed =
  | { readonly kind: "packet"; readonly header: XsHeader; readonly payload: Uint8Array }
  | { readonly kind: "lost"; readonly bytes: number }
  | { readonly kind: "violation"; readonly reason: string };

export class StreamFollower {
  readonly direction: XsDirection;
  #next: number;
  #bytes: Uint8Array = new Uint8Array(0);
  /** Whether `#bytes` begins at a packet boundary. */
  #aligned: boolean;
  /** Remaining bytes of a packet that had begun earlier; they are skipped. */
  #skip = 0;

  /** Starts with what waits in `view` for its consumer. */
  constructor(view: RingStreamView) {
    this.direction = view.direction;
    this.#next = view.usedBytes === undefined ? view.prod : view.cons;
    this.#aligned = view.atBoundary === true;
    const { crossing } = view;
    if (crossing?.header === undefined) return;
    this.#aligned = true;
    this.#skip = XS_HEADER_BYTES + crossing.header.length - crossing.takenBytes;
  }

  /** Index of the first byte that has not been looked at yet. */
  get next(): number {
    return this.#next;
  }

  /**
   * Takes what was produced up to `prod`. The copy `ring` was made before the producer reached `prodAfter`, so
   * whatever it had overwritten by then cannot be trusted.
   */
  follow(ring: Uint8Array, prod: number, prodAfter: number): Followed[] {
    const followed: Followed[] = [];
    const overrun = ((prodAfter - this.#next) >>> 0) - XS_RING_BYTES;
    if (overrun > 0) {
      followed.push({ kind: "lost", bytes: overrun + this.#bytes.length });
      this.#next = (this.#next + overrun) >>> 0;
      this.#bytes = new Uint8Array(0);
      this.#aligned = false;
      this.#skip = 0;
    }
    const fresh = (prod - this.#next) | 0;
    if (fresh > 0) {
      this.#append(streamBytes(ring, this.#next, fresh));
      this.#next = prod;
    }
    this.#split(followed);
    return followed;
  }

  /** The stream starts anew, on a boundary. Returns how many bytes of an unfinished packet were lost. */
  restart(): number {
    const dropped = this.#bytes.length;
    this.#next = 0;
    this.#bytes = new Uint8Array(0);
    this.#aligned = true;
    this.#skip = 0;
    return dropped;
  }

  #append(fresh: Uint8Array): void {
    const skipped = Math.min(this.#skip, fresh.length);
    this.#skip -= skipped;
    const bytes = new Uint8Array(this.#bytes.length + fresh.length - skipped);
    bytes.set(this.#bytes);
    bytes.set(fresh.subarray(skipped), this.#bytes.length);
    this.#bytes = bytes;
  }

  #split(followed: Followed[]): void {
    if (!this.#aligned && !this.#align(followed)) return;
    let at = 0;
    for (;;) {
      const header = readHeader(this.#bytes, at);
      if (header === undefined) break;
      if (header.length > XS_PAYLOAD_MAX) {
        const reason = `a packet of type ${header.type} announces ${header.length} bytes`;
        followed.push({ kind: "violation", reason }, { kind: "lost", bytes: this.#bytes.length - at });
        this.#aligned = false;
        at = this.#bytes.length;
        break;
      }
      const end = at + XS_HEADER_BYTES + header.length;
      if (end > this.#bytes.length) break;
      followed.push({ kind: "packet", header, payload: this.#bytes.subarray(at + XS_HEADER_BYTES, end) });
      at = end;
    }
    this.#bytes = this.#bytes.subarray(at);
  }

  /** Looks for a boundary in the bytes so far. False: none yet. */
  #align(followed: Followed[]): boolean {
    const found = findPackets(this.direction, this.#bytes, 0);
    const first = found?.packets[0];
    const skipped = first?.at ?? Math.max(0, this.#bytes.length - UNKNOWN_BYTES_MAX);
    if (skipped > 0) followed.push({ kind: "lost", bytes: skipped });
    this.#bytes = this.#bytes.subarray(skipped);
    this.#aligned = first !== undefined;
    return this.#aligned;
  }
}
