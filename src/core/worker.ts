// How data planes get their threads. A worker's file must be an entry point of the executable, so cmd/
// makes the workers and hands this function down; the first message's `kind` says what the worker becomes.

/** A new worker running cmd/worker.ts. */
export type SpawnWorker = () => Worker;
