// Prints every operation as it is started, and as it fails.
import { moduleLogger } from "../../core/log.ts";
import { IO_READV, IO_WRITEV, type IoOp, type OnEnd } from "../../native/reactor.ts";
import { errnoText } from "../../native/shim.ts";
import type { OpenTarget } from "../target.ts";
import { concerns, Filter, type FilterContext, type FilterKind } from "./filter.ts";

const OP_NAMES = ["read", "write", "flush", "discard", "secure discard", "read", "write"];

interface LogOptions {
  readonly ops: readonly IoOp[];
}

export const logFilter: FilterKind<LogOptions> = {
  help: "prints operations as they start and as they fail",
  grammar: "log[:op=OPS]",
  parse: (options) => ({ ops: options.takeOps() }),
  open: (options, openInner, onEnd, context) => new LogFilter(options, openInner, onEnd, context),
};

class LogFilter extends Filter {
  readonly #logger = moduleLogger("block");
  readonly #ops: readonly IoOp[];
  readonly #device: string;

  constructor(options: LogOptions, openInner: OpenTarget, onEnd: OnEnd, context: FilterContext) {
    super(openInner, onEnd);
    this.#ops = options.ops;
    this.#device = context.device;
  }

  override start(op: IoOp, tag: number, offset: number, length: number, address: number): void {
    if (concerns(this.#ops, op)) {
      const unit = op === IO_READV || op === IO_WRITEV ? "pieces" : "bytes";
      this.#logger.warn(`${this.#device}: ${OP_NAMES[op]} #${tag} at ${offset}, ${length} ${unit}`);
    }
    super.start(op, tag, offset, length, address);
  }

  protected override ended(tag: number, result: number): void {
    if (result < 0) this.#logger.warn(`${this.#device}: #${tag} failed: ${errnoText(result)}`);
    super.ended(tag, result);
  }
}
