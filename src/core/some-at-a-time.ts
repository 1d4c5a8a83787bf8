// Does something to many, to a few of them at the same time.

/**
 * Takes `step` for each of `items`, in their order, for at most `count` of them at once. Rejects when a step does; the
 * others go on until theirs is done.
 */
export async function someAtATime<T>(
  items: Iterable<T>,
  count: number,
  step: (item: T) => Promise<void>,
): Promise<void> {
  const rest = items[Symbol.iterator]();
  const takeTurns = async (): Promise<void> => {
    for (let next = rest.next(); next.done !== true; next = rest.next()) await step(next.value);
  };
  await Promise.all(Array.from({ length: count }, takeTurns));
}
