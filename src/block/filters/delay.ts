// Delays the start of operations, keeping their order of arrival.
import { Timer, type IoOp, type OnEnd } from "../../native/reactor.ts";
import type { OpenTarget } from "../target.ts";
import { concerns, Filter, type FilterContext, type FilterKind } from "./filter.ts";

interface DelayOptions {
  readonly ops: readonly IoOp[];
  readonly delayMs: number;
}

export const delayFilter: FilterKind<DelayOptions> = {
  help: "holds operations back",
  grammar: "delay[:ms=N,op=OPS]",
  parse: (options) => ({ ops: options.takeOps(), delayMs: options.takeNumber("ms", 10) }),
  open: (options, openInner, onEnd, context) => new DelayFilter(options, openInner, onEnd, context),
};

interface Held {
  readonly dueMs: number;
  readonly op: IoOp;
  readonly tag: number;
  readonly offset: number;
  readonly length: number;
  readonly address: number;
}

class DelayFilter extends Filter {
  readonly #options: DelayOptions;
  readonly #context: FilterContext;
  readonly #held: Held[] = [];
  readonly #timer = new Timer(() => this.#release());

  constructor(options: DelayOptions, openInner: OpenTarget, onEnd: OnEnd, context: FilterContext) {
    super(openInner, onEnd);
    this.#options = options;
    this.#context = context;
  }

  override start(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    if (!concerns(this.#options.ops, op)) {
      super.start(op, tag, offset, length, address);
      return;
    }
    const { delayMs } = this.#options;
    this.#held.push({ dueMs: performance.now() + delayMs, op, tag, offset, length, address });
    if (this.#held.length === 1) this.#context.reactor.setTimer(this.#timer, delayMs);
  }

  #release(): void {
    const now = performance.now();
    for (let held = this.#held[0]; held !== undefined; held = this.#held[0]) {
      if (held.dueMs > now) {
        this.#context.reactor.setTimer(this.#timer, held.dueMs - now);
        return;
      }
      this.#held.shift();
      super.start(held.op, held.tag, held.offset, held.length, held.address);
    }
  }
}
