// Fails a share of the operations, without carrying them out.
import type { IoOp, OnEnd } from "../../native/reactor.ts";
import type { OpenTarget } from "../target.ts";
import { concerns, Filter, type FilterContext, type FilterKind } from "./filter.ts";

const ERRNOS: ReadonlyMap<string, number> = new Map([
  ["EIO", -5],
  ["ENOSPC", -28],
  ["EOPNOTSUPP", -95],
]);

interface ErrorOptions {
  readonly ops: readonly IoOp[];
  /** From 0 to 1. */
  readonly rate: number;
  readonly errno: number;
  readonly seed: number;
  /** Maximum number of operations that fail. */
  readonly times: number;
}

export const errorFilter: FilterKind<ErrorOptions> = {
  help: "fails a share of the operations",
  grammar: "error[:rate=SHARE,errno=EIO|ENOSPC|EOPNOTSUPP,op=OPS,seed=N,times=N]",
  parse(options) {
    const ops = options.takeOps();
    const text = options.take("rate", "100%");
    const [, digits, percent] = /^([0-9]+(?:\.[0-9]+)?|\.[0-9]+)(%?)$/.exec(text) ?? [];
    const rate = Number(digits) / (percent === "%" ? 100 : 1);
    if (!(rate <= 1)) throw options.error(`rate is a share such as 1% or 0.01, not "${text}"`);
    const errno = ERRNOS.get(options.take("errno", "EIO"));
    if (errno === undefined) throw options.error(`errno is one of ${[...ERRNOS.keys()].join(", ")}`);
    const seed = options.takeNumber("seed", 1);
    return { ops, rate, errno, seed, times: options.takeNumber("times", Infinity) };
  },
  open: (options, openInner, onEnd, context) => new ErrorFilter(options, openInner, onEnd, context),
};

class ErrorFilter extends Filter {
  readonly #options: ErrorOptions;
  readonly #context: FilterContext;
  readonly #source: number;
  #timesLeft: number;
  #random: number;

  constructor(options: ErrorOptions, openInner: OpenTarget, onEnd: OnEnd, context: FilterContext) {
    super(openInner, onEnd);
    this.#options = options;
    this.#context = context;
    this.#source = context.reactor.addSource(onEnd);
    this.#timesLeft = options.times;
    this.#random = options.seed >>> 0 || 1;
  }

  override start(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    const { ops, rate, errno } = this.#options;
    if (!concerns(ops, op) || this.#timesLeft === 0 || this.#next() >= rate * 2 ** 32) {
      super.start(op, tag, offset, length, address);
      return;
    }
    this.#timesLeft--;
    this.#context.reactor.finish(this.#source, tag, errno);
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
