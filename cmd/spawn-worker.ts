// Makes the workers of the data planes. The executable finds a worker only next to its entry point, and only
// by a URL made in this folder, so this file stays beside xentool.ts and worker.ts.
import { closeSync, openSync } from "node:fs";
import { describeError, XentoolError } from "../src/core/errors.ts";
import type { SpawnWorker } from "../src/plane/plane.ts";

/** What a worker and the shim in it open as they start, and some to spare for what starts beside them. */
const DESCRIPTORS = 12;

/** A new worker running worker.ts; its first message says what it becomes. Fails with `environment`. */
export const spawnWorker: SpawnWorker = () => {
  expectDescriptors();
  return new Worker(new URL("./worker.ts", import.meta.url));
};

/** Bun ends the whole process, and with it every disk, when a worker cannot have the descriptors it begins with. */
function expectDescriptors(): void {
  const opened: number[] = [];
  try {
    while (opened.length < DESCRIPTORS) opened.push(openSync("/dev/null", "r"));
  } catch (error) {
    throw new XentoolError("environment", `cannot start a worker: ${describeError(error)}`);
  } finally {
    for (const fd of opened) closeSync(fd);
  }
}
