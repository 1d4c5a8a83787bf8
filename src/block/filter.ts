// Filters on top of a block target, for tests and for finding faults: `error` fails operations, `delay`
// holds them back, `log` prints them. Any number of them, the first named nearest to the guest.
import { XentoolError } from "../core/errors.ts";
import { moduleLogger } from "../core/log.ts";
import {
  IO_DELAY,
  IO_DISCARD,
  IO_FLUSH,
  IO_READ,
  IO_READV,
  IO_SECURE_DISCARD,
  IO_WRITE,
  IO_WRITEV,
  type IoOp,
} from "../native/io-engine.ts";
import type { BlockTarget, TargetInfo } from "./target.ts";

const OPERATIONS: ReadonlyMap<string, readonly IoOp[]> = new Map([
  ["read", [IO_READ, IO_READV]],
  ["write", [IO_WRITE, IO_WRITEV]],
  ["flush", [IO_FLUSH]],
  ["discard", [IO_DISCARD, IO_SECURE_DISCARD]],
]);
const ERRNOS: ReadonlyMap<string, number> = new Map([
  ["EIO", -5],
  ["ENOSPC", -28],
  ["EOPNOTSUPP", -95],
]);

/** Structured-cloneable. `ops` empty: all. */
export type FilterSpec =
  | {
      readonly name: "error";
      readonly ops: readonly IoOp[];
      readonly rate: number;
      readonly errno: number;
      readonly seed: number;
    }
  | { readonly name: "delay"; readonly ops: readonly IoOp[]; readonly delayMs: number }
  | { readonly name: "log"; readonly ops: readonly IoOp[] };

/**
 * Reads `--filter`'s argument: `error:rate=1%,errno=EIO,op=write,seed=7`, `delay:ms=5,op=read`, `log:op=flush`.
 * Throws `usage`.
 */
export function parseFilter(text: string): FilterSpec {
  const colon = text.indexOf(":");
  const name = colon < 0 ? text : text.slice(0, colon);
  const values = new Map<string, string>();
  for (const part of colon < 0 ? [] : text.slice(colon + 1).split(",")) {
    const [key, value, ...rest] = part.split("=");
    if (!key || value === undefined || rest.length > 0) throw bad(text, `"${part}" is not key=value`);
    values.set(key, value);
  }
  const take = (key: string, fallback: string): string => {
    const value = values.get(key) ?? fallback;
    values.delete(key);
    return value;
  };
  const spec = parseNamed(name, take, text);
  const unknown = values.keys().next().value;
  if (unknown !== undefined) throw bad(text, `${name} has no "${unknown}"`);
  return spec;
}

function parseNamed(name: string, take: (key: string, fallback: string) => string, text: string): FilterSpec {
  const ops = parseOps(take("op", "all"), text);
  switch (name) {
    case "error": {
      const rate = parseShare(take("rate", "100%"), text);
      const errno = ERRNOS.get(take("errno", "EIO"));
      if (errno === undefined) throw bad(text, `errno is one of ${[...ERRNOS.keys()].join(", ")}`);
      return { name, ops, rate, errno, seed: wholeNumber(take("seed", "1"), "seed", text) };
    }
    case "delay":
      return { name, ops, delayMs: wholeNumber(take("ms", "10"), "ms", text) };
    case "log":
      return { name, ops };
    default:
      throw bad(text, "the filters are error, delay and log");
  }
}

function parseOps(value: string, text: string): readonly IoOp[] {
  if (value === "all") return [];
  return value.split("+").flatMap((name) => {
    const ops = OPERATIONS.get(name);
    if (ops === undefined)
      throw bad(text, `op is read, write, flush, discard or several joined by +, not ${name}`);
    return ops;
  });
}

function parseShare(value: string, text: string): number {
  const [, digits, percent] = /^([0-9]+(?:\.[0-9]+)?|\.[0-9]+)(%?)$/.exec(value) ?? [];
  const share = Number(digits) / (percent === "%" ? 100 : 1);
  if (!(share <= 1)) throw bad(text, `rate is a share such as 1% or 0.01, not "${value}"`);
  return share;
}

function wholeNumber(value: string, key: string, text: string): number {
  if (!/^[0-9]{1,9}$/.test(value)) throw bad(text, `${key} is a whole number`);
  return Number(value);
}

function bad(text: string, why: string): XentoolError {
  return new XentoolError("usage", `--filter ${text}: ${why}`);
}

/** `target` behind the filters of `specs`. Closing the result closes all of them. */
export function addFilters(target: BlockTarget, specs: readonly FilterSpec[], device: string): BlockTarget {
  return specs.reduceRight<BlockTarget>((inner, spec) => {
    switch (spec.name) {
      case "error":
        return new ErrorFilter(inner, spec);
      case "delay":
        return new DelayFilter(inner, spec);
      case "log":
        return new LogFilter(inner, spec.ops, device);
    }
  }, target);
}

/** What all filters do: pass on. */
abstract class Filter implements BlockTarget {
  readonly info: TargetInfo;
  protected readonly inner: BlockTarget;
  readonly #ops: readonly IoOp[];

  constructor(inner: BlockTarget, ops: readonly IoOp[]) {
    this.inner = inner;
    this.info = inner.info;
    this.#ops = ops;
  }

  get done(): Int32Array {
    return this.inner.done;
  }

  submit(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    this.inner.submit(op, tag, offset, length, address);
  }

  run(wait: number, timeoutUs: number): number {
    return this.inner.run(wait, timeoutUs);
  }

  watch(fd: number, tag: number): void {
    this.inner.watch(fd, tag);
  }

  close(): void {
    this.inner.close();
  }

  protected concerns(op: IoOp): boolean {
    return this.#ops.length === 0 || this.#ops.includes(op);
  }
}

/** Lets a share of the operations fail, without doing them: each becomes a delay of 0 with another result. */
class ErrorFilter extends Filter {
  readonly #errno: number;
  readonly #threshold: number;
  readonly #failing = new Set<number>();
  #random: number;

  constructor(inner: BlockTarget, spec: Extract<FilterSpec, { name: "error" }>) {
    super(inner, spec.ops);
    this.#errno = spec.errno;
    this.#threshold = spec.rate * 2 ** 32;
    this.#random = spec.seed >>> 0 || 1;
  }

  override submit(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    if (!this.concerns(op) || this.#next() >= this.#threshold) {
      super.submit(op, tag, offset, length, address);
      return;
    }
    this.#failing.add(tag);
    super.submit(IO_DELAY, tag, 0, 0, 0);
  }

  override run(wait: number, timeoutUs: number): number {
    const count = super.run(wait, timeoutUs);
    for (let i = 0; i < count && this.#failing.size > 0; i++)
      if (this.#failing.delete(this.done[i * 2] as number)) this.done[i * 2 + 1] = this.#errno;
    return count;
  }

  /** xorshift32: the same seed fails the same operations. */
  #next(): number {
    let x = this.#random;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#random = x >>> 0;
    return this.#random;
  }
}

interface Held {
  readonly op: IoOp;
  readonly offset: number;
  readonly length: number;
  readonly address: number;
}

/** Starts operations only after a while. */
class DelayFilter extends Filter {
  readonly #delayMs: number;
  readonly #held = new Map<number, Held>();

  constructor(inner: BlockTarget, spec: Extract<FilterSpec, { name: "delay" }>) {
    super(inner, spec.ops);
    this.#delayMs = spec.delayMs;
  }

  override submit(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    if (!this.concerns(op)) {
      super.submit(op, tag, offset, length, address);
      return;
    }
    this.#held.set(tag, { op, offset, length, address });
    super.submit(IO_DELAY, tag, 0, this.#delayMs, 0);
  }

  /** Delays that ended are taken out of the completions; their operations go out with the next run. */
  override run(wait: number, timeoutUs: number): number {
    const count = super.run(wait, timeoutUs);
    let kept = 0;
    for (let i = 0; i < count; i++) {
      const tag = this.done[i * 2] as number;
      const held = this.#held.get(tag);
      if (held === undefined) {
        this.done[kept * 2] = tag;
        this.done[kept * 2 + 1] = this.done[i * 2 + 1] as number;
        kept++;
      } else {
        this.#held.delete(tag);
        super.submit(held.op, tag, held.offset, held.length, held.address);
      }
    }
    return count < 0 ? count : kept;
  }
}

const OP_NAMES = ["read", "write", "flush", "discard", "secure discard", "read", "write", "delay"];

/** Prints every operation as it is submitted and as it fails. */
class LogFilter extends Filter {
  readonly #logger = moduleLogger("block");
  readonly #device: string;

  constructor(inner: BlockTarget, ops: readonly IoOp[], device: string) {
    super(inner, ops);
    this.#device = device;
  }

  override submit(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    if (this.concerns(op))
      this.#logger.warn(
        `${this.#device}: ${OP_NAMES[op]} #${tag} at ${offset}, ${length} ${op === IO_READV || op === IO_WRITEV ? "pieces" : "bytes"}`,
      );
    super.submit(op, tag, offset, length, address);
  }

  override run(wait: number, timeoutUs: number): number {
    const count = super.run(wait, timeoutUs);
    for (let i = 0; i < count; i++)
      if ((this.done[i * 2 + 1] as number) < 0)
        this.#logger.warn(
          `${this.#device}: #${this.done[i * 2]} failed: errno ${-(this.done[i * 2 + 1] as number)}`,
        );
    return count;
  }
}
