// The thread of an ImageThreads: touches an image before anybody else does, and after.
import { closeSync, openSync, readSync, statSync } from "node:fs";
import { closeImage } from "../../block/image.ts";
import { attempt } from "../../block/image/attempt.ts";
import { rememberIn } from "../../block/image/known.ts";
import type { CarryOut } from "../../plane/answer.ts";
import type { ImageThreadOrder } from "./image-threads.ts";

/** What cannot be reached is said by whoever opens it. */
export const carryOutImageThreadOrder: CarryOut<ImageThreadOrder> = (order) => {
  if (order.type === "reach") attempt(() => touch(order.path));
  else {
    rememberIn(order.memory);
    closeImage(order.image);
  }
};

function touch(path: string): void {
  const stat = statSync(path);
  // Opening anything else, as a pipe, might wait for somebody.
  if (!stat.isFile() && !stat.isBlockDevice()) return;
  const fd = openSync(path, "r");
  try {
    readSync(fd, Buffer.alloc(1), 0, 1, 0);
  } finally {
    closeSync(fd);
  }
}
