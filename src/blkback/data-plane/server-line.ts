// What the plane of a disk whose image is on a server needs of the control side, and tells it.
import { rmSync } from "node:fs";
import type { OnDialled } from "../../block/targets/nbd/link.ts";
import { WriteLog, writeLogPath } from "../../block/targets/nbd/write-log.ts";
import type { RemoteNeeds } from "../../block/targets/open.ts";
import { moduleLogger } from "../../core/log.ts";
import type { BlkbackControl } from "./blkback-control.ts";
import type { BlkbackReport } from "./blkback-orders.ts";
import { STAT } from "../stats/stats.ts";

const logger = moduleLogger("blkback");

export class ServerLine {
  readonly needs: Pick<RemoteNeeds, "dial" | "onHeld">;
  readonly #control: BlkbackControl;
  #onDialled: OnDialled = () => {};

  /** `counters` are the disk's. */
  constructor(control: BlkbackControl, report: (what: BlkbackReport) => void, counters: Float64Array) {
    this.#control = control;
    counters[STAT.serverLostAtMs] = 0;
    const dial = (onDialled: OnDialled, anew: boolean): void => {
      this.#onDialled = onDialled;
      report({ type: "dial", anew });
    };
    const onHeld = (why: string | undefined, isOver = false): void => {
      if (why === undefined) counters[STAT.serverLostAtMs] = 0;
      else if (counters[STAT.serverLostAtMs] === 0) {
        counters[STAT.serverLostAtMs] = Date.now();
        counters[STAT.serverLosses]++;
      }
      report({ type: "held", why: why ?? null, isOver });
    };
    this.needs = { dial, onHeld };
  }

  /** The control side has woken us, perhaps with a connection. */
  take(): void {
    const result = this.#control.takeDialled();
    if (result !== undefined) this.#onDialled(result);
  }
}

/** Removes the log of writes of the disk with these statistics. */
export function removeWriteLog(statsPath: string): void {
  rmSync(writeLogPath(statsPath), { force: true });
}

/**
 * Opens the log of writes of the disk with these statistics, for the device and the export that `name` names.
 * `isTakenOver`: a former server has answered requests of the guest.
 */
export function openWriteLog(statsPath: string, name: string, isTakenOver: boolean): WriteLog {
  const log = WriteLog.open(writeLogPath(statsPath), name);
  if (log.found === "another export's")
    logger.error(
      "what was written to a former disk of this name and not flushed there cannot be sent to this one: it may be lost",
    );
  else if (log.found === "no log" && isTakenOver)
    logger.warn(
      "the former server's log of writes is gone: what the NBD server forgot meanwhile cannot be sent again",
    );
  return log;
}
