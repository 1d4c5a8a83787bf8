// Makes the workers of the data planes. The executable finds a worker only next to its entry point, and only
// by a URL made in this folder, so this file stays beside xentool.ts and worker.ts.
import type { SpawnWorker } from "../src/core/worker.ts";

/** A new worker running worker.ts; its first message says what it becomes. */
export const spawnWorker: SpawnWorker = () => new Worker(new URL("./worker.ts", import.meta.url));
