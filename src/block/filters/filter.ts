// A filter: a block target around another one, to which it passes operations and from which it gets their results.
// Each filter has a file of its own and an entry in catalogue.ts.
import { XentoolError } from "../../core/errors.ts";
import {
  IO_DISCARD,
  IO_FLUSH,
  IO_READ,
  IO_READV,
  IO_SECURE_DISCARD,
  IO_WRITE,
  IO_WRITEV,
  type IoOp,
  type OnEnd,
  type Reactor,
} from "../../native/reactor.ts";
import type { BlockTarget, OpenTarget, TargetInfo } from "../target.ts";

/** What filters are opened with. */
export interface FilterContext {
  readonly reactor: Reactor;
  /** The device's name, for messages. */
  readonly device: string;
  /** The current size of the disk. */
  readonly sizeBytes: () => number;
}

/** One kind of filter. */
export interface FilterKind<Options> {
  /** For `--filter help`: what the filter does, and the grammar of its options. */
  readonly help: string;
  readonly grammar: string;
  /** Parses its options into a structured-cloneable form. Throws the errors that `options` makes. */
  parse(options: FilterOptions): Options;
  open(options: Options, openInner: OpenTarget, onEnd: OnEnd, context: FilterContext): BlockTarget;
}

/** The `key=value` pairs in a filter's text. Each can be taken once. */
export class FilterOptions {
  readonly #text: string;
  readonly #values = new Map<string, string>();

  /** Throws `usage` when `text`, the part of `whole` after the colon, does not consist of pairs. */
  constructor(whole: string, text: string | undefined) {
    this.#text = whole;
    for (const part of text === undefined ? [] : text.split(",")) {
      const [key, value, ...rest] = part.split("=");
      if (!key || value === undefined || rest.length > 0) throw this.error(`"${part}" is not key=value`);
      this.#values.set(key, value);
    }
  }

  take(key: string, fallback: string): string {
    const value = this.#values.get(key) ?? fallback;
    this.#values.delete(key);
    return value;
  }

  takeNumber(key: string, fallback: number): number {
    const value = this.#values.get(key);
    if (value === undefined) return fallback;
    this.#values.delete(key);
    if (!/^[0-9]{1,9}$/.test(value)) throw this.error(`${key} is a whole number`);
    return Number(value);
  }

  /** The operations named by `op=`; empty means all. */
  takeOps(): readonly IoOp[] {
    const value = this.take("op", "all");
    if (value === "all") return [];
    return value.split("+").flatMap((name) => {
      const ops = OPERATIONS.get(name);
      if (ops === undefined)
        throw this.error(`op is read, write, flush, discard or several joined by +, not ${name}`);
      return ops;
    });
  }

  /** The name of a pair that was not taken. */
  get unknown(): string | undefined {
    return this.#values.keys().next().value;
  }

  error(why: string): XentoolError {
    return new XentoolError("usage", `--filter ${this.#text}: ${why}`);
  }
}

const OPERATIONS: ReadonlyMap<string, readonly IoOp[]> = new Map([
  ["read", [IO_READ, IO_READV]],
  ["write", [IO_WRITE, IO_WRITEV]],
  ["flush", [IO_FLUSH]],
  ["discard", [IO_DISCARD, IO_SECURE_DISCARD]],
]);

/** The base of filters: passes everything on unchanged. */
export abstract class Filter implements BlockTarget {
  protected readonly inner: BlockTarget;
  readonly #onEnd: OnEnd;

  constructor(openInner: OpenTarget, onEnd: OnEnd) {
    this.#onEnd = onEnd;
    this.inner = openInner((tag, result) => this.ended(tag, result));
  }

  get info(): TargetInfo {
    return this.inner.info;
  }

  start(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    this.inner.start(op, tag, offset, length, address);
  }

  protected ended(tag: number, result: number): void {
    this.#onEnd(tag, result);
  }
}

/** Whether a filter for `ops` applies to `op`. */
export function concerns(ops: readonly IoOp[], op: IoOp): boolean {
  return ops.length === 0 || ops.includes(op);
}
