// Steps that are taken for a few at a time, in order, and what becomes of them when one fails.
import { expect, test } from "bun:test";
import { someAtATime } from "../../src/core/some-at-a-time.ts";

/** Steps that end when they are told to. */
function steps(): {
  begun: number[];
  step: (item: number) => Promise<void>;
  end: (item: number, error?: Error) => Promise<void>;
} {
  const begun: number[] = [];
  const running = new Map<number, PromiseWithResolvers<void>>();
  const step = (item: number): Promise<void> => {
    begun.push(item);
    running.set(item, Promise.withResolvers<void>());
    return running.get(item)?.promise as Promise<void>;
  };
  const end = async (item: number, error?: Error): Promise<void> => {
    if (error === undefined) running.get(item)?.resolve();
    else running.get(item)?.reject(error);
    await new Promise((resolve) => void setImmediate(resolve));
  };
  return { begun, step, end };
}

test("no more than so many at once, the next when one ends", async () => {
  const { begun, step, end } = steps();
  const all = someAtATime([1, 2, 3, 4], 2, step);
  expect(begun).toEqual([1, 2]);
  await end(2);
  expect(begun).toEqual([1, 2, 3]);
  await end(1);
  await end(3);
  await end(4);
  await all;
  expect(begun).toEqual([1, 2, 3, 4]);
});

test("for nobody", async () => {
  const { begun, step } = steps();
  await someAtATime([], 2, step);
  expect(begun).toEqual([]);
});

test("one that fails is told at once, and has none after it; the others go on", async () => {
  const { begun, step, end } = steps();
  const all = someAtATime([1, 2, 3], 2, step);
  const told = all.then(
    () => "done",
    (error: unknown) => String(error),
  );
  await end(1, new Error("no"));
  expect(await told).toBe("Error: no");
  expect(begun).toEqual([1, 2]);
  await end(2);
  expect(begun).toEqual([1, 2, 3]);
});
