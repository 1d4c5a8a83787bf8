// Checks a data plane's operations on its target once more, at the last moment: ranges, capabilities, tags, results.
// Whatever it finds is a bug of ours, never a guest's doing, and ends the data plane before it can do harm.
import { XentoolError } from "../../core/errors.ts";
import {
  IO_DISCARD,
  IO_FLUSH,
  IO_READ,
  IO_READV,
  IO_SECURE_DISCARD,
  IO_WRITEV,
  type IoOp,
  type OnEnd,
} from "../../native/reactor.ts";
import { SECTOR_SIZE } from "../../protocol/blkif.ts";
import type { OpenTarget } from "../target.ts";
import { Filter, type FilterContext, type FilterKind } from "./filter.ts";

export const assertFilter: FilterKind<Record<string, never>> = {
  help: "ends the data plane when it asks for what cannot be right; for tests",
  grammar: "assert",
  parse: () => ({}),
  open: (_options, openInner, onEnd, context) => new AssertFilter(openInner, onEnd, context),
};

class AssertFilter extends Filter {
  readonly #context: FilterContext;
  /** Indexed by tag: the most bytes that the operation may transfer. */
  readonly #inFlight = new Map<number, number>();
  /** The largest size so far: a disk may shrink while an operation that was checked before is waiting. */
  #largestBytes = 0;

  constructor(openInner: OpenTarget, onEnd: OnEnd, context: FilterContext) {
    super(openInner, onEnd);
    this.#context = context;
  }

  override start(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    this.#largestBytes = Math.max(this.#largestBytes, this.#context.sizeBytes());
    const what = `operation ${op} #${tag} at ${offset}, ${length}`;
    if (this.#inFlight.has(tag)) throw broken(`${what}: its tag is in use`);
    const { readOnly, canDiscard } = this.info;
    const discards = op === IO_DISCARD || op === IO_SECURE_DISCARD;
    if (readOnly && op !== IO_READ && op !== IO_READV && op !== IO_FLUSH)
      throw broken(`${what}: the disk is read-only`);
    if (discards && !canDiscard) throw broken(`${what}: the disk cannot discard`);
    const inPieces = op === IO_READV || op === IO_WRITEV;
    const bytes = inPieces ? this.#largestBytes - offset : length;
    if (op === IO_FLUSH) {
      if (offset !== 0 || length !== 0) throw broken(`${what}: a flush has no range`);
    } else {
      if (!isRange(offset, bytes, this.#largestBytes)) throw broken(`${what}: outside ${this.#largestBytes}`);
      if (inPieces ? !(length > 0) : bytes === 0) throw broken(`${what}: empty`);
      if (!discards && address === 0) throw broken(`${what}: no memory`);
    }
    this.#inFlight.set(tag, op === IO_FLUSH || discards ? 0 : bytes);
    super.start(op, tag, offset, length, address);
  }

  protected override ended(tag: number, result: number): void {
    const most = this.#inFlight.get(tag);
    if (most === undefined) throw broken(`operation #${tag} ended, and is not in flight`);
    if (result > most) throw broken(`operation #${tag} transferred ${result} of ${most} bytes`);
    this.#inFlight.delete(tag);
    super.ended(tag, result);
  }
}

function isRange(offset: number, bytes: number, sizeBytes: number): boolean {
  return (
    Number.isSafeInteger(offset) &&
    offset >= 0 &&
    bytes >= 0 &&
    offset % SECTOR_SIZE === 0 &&
    offset + bytes <= sizeBytes
  );
}

function broken(what: string): XentoolError {
  return new XentoolError("bug", `the data plane asked for what cannot be right: ${what}`);
}
