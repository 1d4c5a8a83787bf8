// Creates the workers of the data planes. The executable finds a worker only next to its entry point, and only by a
// URL built in this folder, so this file stays beside xentool.ts and worker.ts.
import { closeSync, openSync } from "node:fs";
import { describeError, XentoolError } from "../src/core/errors.ts";
import type { SpawnWorker } from "../src/plane/plane.ts";

/** Descriptors that a worker and its shim open as they start, with some to spare for what starts beside them. */
const DESCRIPTORS = 12;

/** A new worker running worker.ts; its first message says what it becomes. Fails with `environment`. */
export const spawnWorker: SpawnWorker = () => {
  expectDescriptors();
  return new Worker(new URL("./worker.ts", import.meta.url));
};

/** If a worker cannot get the descriptors it starts with, Bun ends the whole process, and every disk with it. */
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
