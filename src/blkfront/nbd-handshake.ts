// Option negotiation of one NBD connection, from the greeting to the transmission phase: bytes in, bytes out, nothing
// else. Whatever the client sends is bounded, and is answered or ends the connection; it never throws.
import {
  encodeExportNameReply,
  encodeGreeting,
  encodeInfo,
  encodeOptionReply,
  encodeServer,
  IHAVEOPT_HIGH,
  IHAVEOPT_LOW,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_FLAG_SEND_DF,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_EXPORT,
  NBD_INFO_NAME,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_GO,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ACK,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_TOO_BIG,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  NBD_REP_SERVER,
  OPTION_HEADER_BYTES,
  type NbdExport,
} from "../protocol/nbd.ts";
import { MAX_OPTION_BYTES, MAX_SKIPPED_BYTES } from "./bounds.ts";

/** more: feed what comes next; transmission: options are over; end: close when the reply is sent. */
export type HandshakeOutcome = "more" | "transmission" | "end";

export interface HandshakeStep {
  readonly consumed: number;
  readonly reply: Uint8Array;
  readonly outcome: HandshakeOutcome;
}

const NOTHING = new Uint8Array(0);

export class NbdHandshake {
  readonly greeting: Uint8Array = encodeGreeting();
  /** The client wants structured replies. */
  structured = false;
  readonly #exported: () => NbdExport;
  #flagsSeen = false;
  #noZeroes = false;
  /** Bytes of a refused option that are still to come. */
  #skip = 0;

  /** `exported` is called each time, because a disk may be resized. */
  constructor(exported: () => NbdExport) {
    this.#exported = exported;
  }

  /**
   * Takes the client flags or one option from the start of `bytes`; consumes nothing when it is incomplete. An option
   * that is too big is skipped as it arrives.
   */
  step(bytes: Uint8Array): HandshakeStep {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    if (!this.#flagsSeen) return this.#takeFlags(view);
    if (this.#skip > 0) return this.#skipBytes(bytes.length);
    if (bytes.length < OPTION_HEADER_BYTES) return more(0);
    const length = view.getUint32(12);
    if (view.getUint32(0) !== IHAVEOPT_HIGH || view.getUint32(4) !== IHAVEOPT_LOW) return end();
    if (length > MAX_OPTION_BYTES) return this.#refuse(view.getUint32(8), length);
    const whole = OPTION_HEADER_BYTES + length;
    if (bytes.length < whole) return more(0);
    return this.#answer(view.getUint32(8), bytes.subarray(OPTION_HEADER_BYTES, whole), whole);
  }

  #takeFlags(view: DataView): HandshakeStep {
    if (view.byteLength < 4) return more(0);
    const flags = view.getUint32(0);
    // A client without fixed newstyle cannot cope with a refused option.
    if ((flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) !== 0) return end();
    this.#flagsSeen = true;
    this.#noZeroes = (flags & NBD_FLAG_NO_ZEROES) !== 0;
    return more(4);
  }

  /** Refuses an oversized option. EXPORT_NAME has no reply but the export itself, so it ends the connection instead. */
  #refuse(option: number, length: number): HandshakeStep {
    if (option === NBD_OPT_EXPORT_NAME || length > MAX_SKIPPED_BYTES) return end();
    this.#skip = length;
    return more(OPTION_HEADER_BYTES, encodeOptionReply(option, NBD_REP_ERR_TOO_BIG));
  }

  #skipBytes(available: number): HandshakeStep {
    const skipped = Math.min(this.#skip, available);
    this.#skip -= skipped;
    return more(skipped);
  }

  #answer(option: number, data: Uint8Array, consumed: number): HandshakeStep {
    const reply = (type: number): HandshakeStep => more(consumed, encodeOptionReply(option, type));
    switch (option) {
      case NBD_OPT_EXPORT_NAME: {
        if (!this.#knows(data)) return end();
        const text = encodeExportNameReply(this.#offer(), !this.#noZeroes);
        return { consumed, reply: text, outcome: "transmission" };
      }
      case NBD_OPT_ABORT:
        return { consumed, reply: encodeOptionReply(option, NBD_REP_ACK), outcome: "end" };
      case NBD_OPT_LIST:
        if (data.length > 0) return reply(NBD_REP_ERR_INVALID);
        return more(
          consumed,
          Buffer.concat([
            encodeOptionReply(option, NBD_REP_SERVER, encodeServer(this.#offer())),
            encodeOptionReply(option, NBD_REP_ACK),
          ]),
        );
      case NBD_OPT_INFO:
      case NBD_OPT_GO:
        return this.#describe(option, data, consumed);
      case NBD_OPT_STRUCTURED_REPLY:
        if (data.length > 0) return reply(NBD_REP_ERR_INVALID);
        this.structured = true;
        return reply(NBD_REP_ACK);
      default:
        return reply(NBD_REP_ERR_UNSUP);
    }
  }

  /** INFO and GO: name length, name, count, and that many items that the client would like. */
  #describe(option: number, data: Uint8Array, consumed: number): HandshakeStep {
    const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    const reply = (type: number): HandshakeStep => more(consumed, encodeOptionReply(option, type));
    if (data.length < 6) return reply(NBD_REP_ERR_INVALID);
    const nameLength = view.getUint32(0);
    if (nameLength > data.length - 6) return reply(NBD_REP_ERR_INVALID);
    const count = view.getUint16(4 + nameLength);
    if (data.length !== 6 + nameLength + 2 * count) return reply(NBD_REP_ERR_INVALID);
    if (!this.#knows(data.subarray(4, 4 + nameLength))) return reply(NBD_REP_ERR_UNKNOWN);
    const wanted = new Set([NBD_INFO_EXPORT, NBD_INFO_BLOCK_SIZE]);
    for (let index = 0; index < count; index++) {
      const item = view.getUint16(6 + nameLength + 2 * index);
      if (item === NBD_INFO_NAME || item === NBD_INFO_DESCRIPTION) wanted.add(item);
    }
    const exported = this.#offer();
    const items = [...wanted].map((item) =>
      encodeOptionReply(option, NBD_REP_INFO, encodeInfo(item, exported)),
    );
    const text = Buffer.concat([...items, encodeOptionReply(option, NBD_REP_ACK)]);
    return { consumed, reply: text, outcome: option === NBD_OPT_GO ? "transmission" : "more" };
  }

  /** The only export has a name, and is also the default. */
  #knows(name: Uint8Array): boolean {
    return name.length === 0 || Buffer.from(name).toString("utf8") === this.#exported().name;
  }

  /** Without structured replies no read is fragmented, so there is nothing to ask for with DF. */
  #offer(): NbdExport {
    const exported = this.#exported();
    return this.structured ? exported : { ...exported, flags: exported.flags & ~NBD_FLAG_SEND_DF };
  }
}

function more(consumed: number, reply: Uint8Array = NOTHING): HandshakeStep {
  return { consumed, reply, outcome: "more" };
}

/** Ends the connection without a reply: none would help this client. */
function end(): HandshakeStep {
  return { consumed: 0, reply: NOTHING, outcome: "end" };
}
