// Waits for an image whose holder may be about to release it: udev opens a device briefly after it appears, the
// server of a disk that was just detached is still closing it, or a killed process is not quite gone.
import { pause } from "../../core/deadline.ts";
import { describeError, XentoolError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import { HELD } from "./open.ts";

const logger = moduleLogger("block");

const PAUSE_MS = 100;

/**
 * Retries `open` while the image is held and `mayWait` allows it. `mayWait` gets the time waited so far, and whether
 * this process holds the image.
 */
export async function openWhenFree<T>(
  open: () => T | Promise<T>,
  mayWait: (waitedMs: number, own: boolean) => boolean | Promise<boolean>,
): Promise<T> {
  const since = performance.now();
  for (let said = false; ; said = true) {
    try {
      return await open();
    } catch (error) {
      if (!(error instanceof XentoolError) || error.context["reason"] !== HELD) throw error;
      if (!(await mayWait(performance.now() - since, error.context["own"] === true))) throw error;
      if (!said) logger.info(`waiting: ${describeError(error)}`);
    }
    await pause(PAUSE_MS);
  }
}
