// Bounded waiting: it ends when the time is up or when a signal fires. However a wait ends, it leaves no timer and no
// listener behind. A signal that fired before the wait began ends it, too.

/** The result of a wait that was cut short. */
const CUT: unique symbol = Symbol("cut");

/** Runs `listener` once `signal` fires, or now if it already has. Disposing of the result removes the listener. */
export function onAbort(signal: AbortSignal | undefined, listener: () => unknown): Disposable {
  const run = (): void => void listener();
  if (signal?.aborted === true) run();
  else signal?.addEventListener("abort", run, { once: true });
  return { [Symbol.dispose]: () => signal?.removeEventListener("abort", run) };
}

async function firstOf<T>(
  work: Promise<T>,
  timeoutMs = Infinity,
  signal?: AbortSignal,
): Promise<T | typeof CUT> {
  const { promise, resolve } = Promise.withResolvers<typeof CUT>();
  const timer = timeoutMs === Infinity ? undefined : setTimeout(resolve, timeoutMs, CUT);
  using _ = onAbort(signal, () => resolve(CUT));
  try {
    return await Promise.race([work, promise]);
  } finally {
    clearTimeout(timer);
  }
}

/** Waits for `durationMs`, but only until `signal` fires, and then resolves to false. */
export async function pause(durationMs: number, signal?: AbortSignal): Promise<boolean> {
  await firstOf(new Promise<never>(() => {}), durationMs, signal);
  return signal?.aborted !== true;
}

/**
 * Returns the result of `work`. After `timeoutMs` it stops waiting and throws the error that `late` makes; undefined
 * and Infinity wait for ever.
 */
export async function within<T>(
  timeoutMs: number | undefined,
  work: Promise<T>,
  late: () => Error,
): Promise<T> {
  const result = await firstOf(work, timeoutMs);
  if (result === CUT) throw late();
  return result;
}

/** Returns the result of `work`, or undefined once `signal` fires. */
export async function unlessAborted<T>(
  work: Promise<T>,
  signal: AbortSignal | undefined,
): Promise<T | undefined> {
  const result = await firstOf(work, Infinity, signal);
  return result === CUT ? undefined : result;
}

/** Whether `work` ends before the time is up and before `signal` fires. Rejects if `work` does. */
export async function endsWithin(
  timeoutMs: number | undefined,
  work: Promise<unknown>,
  signal?: AbortSignal,
): Promise<boolean> {
  return (await firstOf(work, timeoutMs, signal)) !== CUT;
}
