// The client's side of option negotiation, from the greeting to the transmission phase: bytes in, bytes out, nothing
// else. A server that breaks the protocol, or refuses, makes it throw; what it may send is bounded.
import { XentoolError } from "../../../core/errors.ts";
import {
  encodeOption,
  IHAVEOPT_HIGH,
  IHAVEOPT_LOW,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_NO_ZEROES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_EXPORT,
  NBD_MAGIC_HIGH,
  NBD_MAGIC_LOW,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_GO,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ACK,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  OPTION_REPLY_BYTES,
  OPTION_REPLY_HIGH,
  OPTION_REPLY_LOW,
} from "../../../protocol/nbd.ts";

/** An export as its server describes it. */
export interface SeenExport {
  readonly sizeBytes: number;
  /** NBD_FLAG_* of the transmission phase. */
  readonly flags: number;
  readonly structured: boolean;
  readonly minBlockBytes: number;
  readonly preferredBlockBytes: number;
  /** The largest payload of a request. */
  readonly maxBlockBytes: number;
}

export interface ClientStep {
  readonly consumed: number;
  readonly reply: Uint8Array;
  /** Present when the transmission phase begins after `consumed` bytes. */
  readonly seen?: SeenExport;
}

export const GREETING_BYTES = 18;
export const MAX_REPLY_BYTES = 64 * 1024;
/** More than any server has to say about one export. */
const MAX_INFOS = 64;
const MAX_MIN_BLOCK = 64 * 1024;
const MAX_PAYLOAD = 32 * 1024 * 1024;
const ERROR_BIT = 0x8000_0000;
const NOTHING = new Uint8Array(0);

/** The reply of our own relay (tls-relay.ts) that has no secure connection to the server, to any option. */
export const NOT_SECURE = ERROR_BIT + 1000;

/** The `reason` in the context of the error thrown when the server has no export with this name. */
export const NO_SUCH_EXPORT = "no such export";

type Phase = "greeting" | "structured" | "go" | "export";

export class NbdClientHandshake {
  readonly #name: Uint8Array;
  #phase: Phase = "greeting";
  #noZeroes = false;
  #structured = false;
  #infos = 0;
  #sizeBytes = -1;
  #flags = 0;
  /** What holds where the server does not say. */
  #blocks: Pick<SeenExport, "minBlockBytes" | "preferredBlockBytes" | "maxBlockBytes"> = {
    minBlockBytes: 512,
    preferredBlockBytes: 4096,
    maxBlockBytes: MAX_PAYLOAD,
  };

  constructor(exportName: string) {
    this.#name = Buffer.from(exportName);
  }

  /**
   * Takes one message from the start of `bytes`, or nothing while it is incomplete. Throws `protocol`, or `environment`
   * when the server refuses.
   */
  step(bytes: Uint8Array): ClientStep {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    if (this.#phase === "greeting") return bytes.length < GREETING_BYTES ? more(0) : this.#greet(view);
    if (this.#phase === "export") return this.#takeExport(view);
    if (bytes.length < OPTION_REPLY_BYTES) return more(0);
    if (view.getUint32(0) !== OPTION_REPLY_HIGH || view.getUint32(4) !== OPTION_REPLY_LOW)
      throw broken("an option's reply has a wrong magic number");
    const length = view.getUint32(16);
    if (length > MAX_REPLY_BYTES) throw broken(`an option's reply has ${length} bytes`);
    const whole = OPTION_REPLY_BYTES + length;
    if (bytes.length < whole) return more(0);
    const asked = this.#phase === "structured" ? NBD_OPT_STRUCTURED_REPLY : NBD_OPT_GO;
    if (view.getUint32(8) !== asked)
      throw broken(`a reply to option ${view.getUint32(8)}, but ${asked} was asked`);
    const type = view.getUint32(12);
    const data = bytes.subarray(OPTION_REPLY_BYTES, whole);
    return this.#phase === "structured"
      ? this.#structuredReply(type, whole)
      : this.#goReply(type, data, whole);
  }

  #greet(view: DataView): ClientStep {
    const flags = flagsToAnswer(view);
    this.#noZeroes = (flags & NBD_FLAG_NO_ZEROES) !== 0;
    this.#phase = "structured";
    const ours = new Uint8Array(4);
    new DataView(ours.buffer).setUint32(0, flags);
    return more(GREETING_BYTES, Buffer.concat([ours, encodeOption(NBD_OPT_STRUCTURED_REPLY)]));
  }

  #structuredReply(type: number, consumed: number): ClientStep {
    if (type !== NBD_REP_ACK && type < ERROR_BIT) throw broken(`a reply of type ${type} to STRUCTURED_REPLY`);
    this.#structured = type === NBD_REP_ACK;
    this.#phase = "go";
    const data = Buffer.alloc(4 + this.#name.length + 4);
    data.writeUInt32BE(this.#name.length);
    data.set(this.#name, 4);
    data.writeUInt16BE(1, 4 + this.#name.length);
    data.writeUInt16BE(NBD_INFO_BLOCK_SIZE, 6 + this.#name.length);
    return more(consumed, encodeOption(NBD_OPT_GO, data));
  }

  #goReply(type: number, data: Uint8Array, consumed: number): ClientStep {
    if (type === NBD_REP_INFO) {
      if (++this.#infos > MAX_INFOS) throw broken("it does not end to describe the export");
      this.#takeInfo(data);
      return more(consumed);
    }
    if (type === NBD_REP_ACK) return { ...more(consumed), seen: this.#seen() };
    if (type === NBD_REP_ERR_UNSUP) {
      this.#phase = "export";
      return more(consumed, encodeOption(NBD_OPT_EXPORT_NAME, this.#name));
    }
    if (type < ERROR_BIT) throw broken(`a reply of type ${type} to GO`);
    if (type === NOT_SECURE)
      throw new XentoolError("io", `no secure connection to the NBD server: ${Buffer.from(data).toString()}`);
    const why = REFUSALS.get(type - ERROR_BIT) ?? `error ${type - ERROR_BIT}`;
    const said =
      data.length === 0 ? "" : ` (${JSON.stringify(Buffer.from(data.subarray(0, 200)).toString())})`;
    const reason = type === NBD_REP_ERR_UNKNOWN ? NO_SUCH_EXPORT : undefined;
    throw new XentoolError("environment", `the NBD server refuses the export: ${why}${said}`, { reason });
  }

  #takeInfo(data: Uint8Array): void {
    const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    if (data.length < 2) throw broken("an information without a type");
    const type = view.getUint16(0);
    if (type === NBD_INFO_EXPORT) {
      if (data.length !== 12) throw broken("the export's size has a wrong length");
      this.#takeSize(view, 2);
    } else if (type === NBD_INFO_BLOCK_SIZE) {
      if (data.length !== 14) throw broken("the block sizes have a wrong length");
      this.#blocks = blocksOf(view.getUint32(2), view.getUint32(6), view.getUint32(10));
    }
  }

  #takeExport(view: DataView): ClientStep {
    const whole = this.#noZeroes ? 10 : 134;
    if (view.byteLength < whole) return more(0);
    this.#takeSize(view, 0);
    return { ...more(whole), seen: this.#seen() };
  }

  #takeSize(view: DataView, at: number): void {
    const size = view.getBigUint64(at);
    if (size > BigInt(Number.MAX_SAFE_INTEGER)) throw broken(`an export of ${size} bytes`);
    this.#sizeBytes = Number(size);
    this.#flags = view.getUint16(at + 8);
    if ((this.#flags & NBD_FLAG_HAS_FLAGS) === 0) this.#flags = 0;
  }

  #seen(): SeenExport {
    if (this.#sizeBytes < 0) throw broken("it did not say how large the export is");
    return { sizeBytes: this.#sizeBytes, flags: this.#flags, structured: this.#structured, ...this.#blocks };
  }
}

/** The flags that a client answers to a server's greeting. Throws `protocol` if it is none that we can speak to. */
export function flagsToAnswer(greeting: Uint8Array | DataView): number {
  const view = new DataView(greeting.buffer, greeting.byteOffset, greeting.byteLength);
  if (view.getUint32(0) !== NBD_MAGIC_HIGH || view.getUint32(4) !== NBD_MAGIC_LOW)
    throw broken("it is not an NBD server");
  if (view.getUint32(8) !== IHAVEOPT_HIGH || view.getUint32(12) !== IHAVEOPT_LOW)
    throw broken("it speaks only the old protocol");
  const flags = view.getUint16(16);
  if ((flags & NBD_FLAG_FIXED_NEWSTYLE) === 0) throw broken("it does not speak fixed newstyle");
  return flags & (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
}

const REFUSALS: ReadonlyMap<number, string> = new Map([
  [2, "it is not allowed"],
  [3, "it finds the request invalid"],
  [4, "it cannot do that on its platform"],
  [5, "it wants TLS: use nbds://, or nbds+unix:// for a socket"],
  [6, "it has no such export"],
  [7, "it is shutting down"],
  [8, "it wants its block sizes to be asked for"],
  [9, "the name is too long for it"],
]);

function blocksOf(minBlockBytes: number, preferredBlockBytes: number, maxBlockBytes: number) {
  const said = `block sizes ${minBlockBytes}, ${preferredBlockBytes} and ${maxBlockBytes}`;
  if (!isPowerOfTwo(minBlockBytes) || minBlockBytes > MAX_MIN_BLOCK) throw broken(said);
  if (!isPowerOfTwo(preferredBlockBytes) || preferredBlockBytes < minBlockBytes) throw broken(said);
  // All ones: the server has no limit.
  const isMultiple = maxBlockBytes === 0xffff_ffff || maxBlockBytes % minBlockBytes === 0;
  if (maxBlockBytes < minBlockBytes || !isMultiple) throw broken(said);
  const most = Math.min(maxBlockBytes, MAX_PAYLOAD);
  return { minBlockBytes, preferredBlockBytes, maxBlockBytes: most - (most % minBlockBytes) };
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && (value & (value - 1)) === 0;
}

function more(consumed: number, reply: Uint8Array = NOTHING): ClientStep {
  return { consumed, reply };
}

function broken(what: string): XentoolError {
  return new XentoolError("protocol", `the NBD server broke the protocol: ${what}`);
}
