// A look follows every change, never two at once, and never one for each of many changes.
import { expect, test } from "bun:test";
import { Looking } from "../../src/core/looking.ts";

/** Looks that end when they are told to. */
function looks(): { looking: Looking; begun: () => number; end: (error?: Error) => Promise<void> } {
  let count = 0;
  let current = Promise.withResolvers<void>();
  const looking = new Looking(() => {
    count++;
    current = Promise.withResolvers();
    return current.promise;
  });
  const end = async (error?: Error): Promise<void> => {
    const { promise, resolve, reject } = current;
    if (error === undefined) resolve();
    else reject(error);
    await promise.catch(() => {});
    await Promise.resolve();
  };
  return { looking, begun: () => count, end };
}

test("many changes during one look make one more", async () => {
  const { looking, begun, end } = looks();
  const first = looking.look();
  for (let change = 0; change < 5; change++) await looking.look();
  expect(begun()).toBe(1);
  await end();
  expect(begun()).toBe(2);
  looking.stale();
  await end();
  expect(begun()).toBe(3);
  await end();
  await first;
  expect(begun()).toBe(3);
});

test("a look that fails says so to whoever began, and the next one looks", async () => {
  const { looking, begun, end } = looks();
  const first = looking.look();
  await end(new Error("gone"));
  expect(await first.catch((error: unknown) => error)).toEqual(new Error("gone"));
  const second = looking.look();
  expect(begun()).toBe(2);
  await end();
  await second;
});
