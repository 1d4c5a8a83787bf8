// The target of a disk as its plane has it: opened by the data plane, behind the filters that the order names, and
// closed before the reactor that its operations use.
import { openFiltered } from "../../block/filters/catalogue.ts";
import type { FilterContext } from "../../block/filters/filter.ts";
import type { BlockTarget } from "../../block/target.ts";
import type { WriteLog } from "../../block/targets/nbd/write-log.ts";
import { openTarget, type OpenedTarget, type RemoteNeeds } from "../../block/targets/open.ts";
import type { OnEnd } from "../../native/reactor.ts";
import type { BlkbackOrder } from "./blkback-orders.ts";
import { openWriteLog, type ServerLine } from "./server-line.ts";

export interface ServedTargetOptions {
  readonly order: BlkbackOrder["order"];
  readonly context: FilterContext;
  /** Operations under way at most. */
  readonly depth: number;
  /** A former server has answered requests of the guest. */
  readonly isTakenOver: boolean;
  readonly server: ServerLine;
}

export class ServedTarget {
  /** No other server of the same disk is to go on. */
  isOver = false;
  readonly #options: ServedTargetOptions;
  #opened: OpenedTarget | undefined;

  constructor(options: ServedTargetOptions) {
    this.#options = options;
  }

  /** What knows about the server of the image, once it is open and if it has one. */
  get remote(): OpenedTarget["remote"] {
    return this.#opened?.remote;
  }

  readonly open = (onEnd: OnEnd): BlockTarget => {
    const { order, context } = this.#options;
    return openFiltered(order.filters, (innerEnd) => this.#openInner(innerEnd), onEnd, context);
  };

  close(): void {
    this.#opened?.close(this.isOver);
  }

  #openInner(onEnd: OnEnd): BlockTarget {
    const { order, context, depth, isTakenOver, server } = this.#options;
    const openLog = (name: string): WriteLog =>
      openWriteLog(order.statsPath, `${order.deviceId} ${name}`, isTakenOver);
    const needs: RemoteNeeds = { holdMs: order.holdMs, openLog, isTakenOver, ...server.needs };
    this.#opened = openTarget(order.image, context.reactor, depth, onEnd, needs);
    return this.#opened.target;
  }
}
