// The protocol between the control side and a plane, with a plane of the test's own: orders, reports, results, errors,
// and every way in which a plane can fail its order.
import { afterEach, describe, expect, spyOn, test } from "bun:test";
import { XentoolError } from "../../src/core/errors.ts";
import { ControlPage } from "../../src/plane/control-page.ts";
import { Plane, planesAnswer } from "../../src/plane/plane.ts";
import type { TestOrder } from "./plane-worker.ts";

const spawnWorker = (): Worker => new Worker(new URL("./plane-worker.ts", import.meta.url));

let plane: Plane;
afterEach(() => plane.close());

/** The error that `promise` fails with. */
async function errorOf(promise: Promise<unknown>): Promise<XentoolError> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof XentoolError) return error;
    throw error;
  }
  throw new Error("it did not fail");
}

describe("a plane", () => {
  test("carries out one order after the other, and reports meanwhile", async () => {
    plane = new Plane("test", spawnWorker);
    for (const text of ["one", "two"]) {
      const reports: string[] = [];
      const result = await plane.carryOut<TestOrder>({ op: "echo", text }, (report) => reports.push(report));
      expect(result).toBe(text);
      expect(reports).toEqual([`${text} begun`]);
    }
  });

  test("is reached through its control page while it blocks", async () => {
    plane = new Plane("test", spawnWorker);
    plane.control.numbers[3] = 2 ** 40 + 1;
    const begun = Promise.withResolvers<void>();
    const result = plane.carryOut<TestOrder>({ op: "block" }, () => begun.resolve());
    await begun.promise;
    plane.control.raise(4);
    expect(await result).toBe(String(2 ** 40 + 1));
    expect(plane.control.isRaised(4)).toBe(true);
    expect(plane.control.isRaised(3)).toBe(false);
    plane.control.reset();
    expect(plane.control.isRaised(4)).toBe(false);
    expect(plane.control.numbers[3]).toBe(0);
  });

  test("fails an order with the error that it met, and takes the next", async () => {
    plane = new Plane("test", spawnWorker);
    const error = await errorOf(plane.carryOut<TestOrder>({ op: "throw" }));
    expect(error).toMatchObject({ kind: "io", context: { errno: "ENOSPC" } });
    expect(error.message).toBe("the disk is full: really");
    expect(await plane.carryOut<TestOrder>({ op: "echo", text: "still here" })).toBe("still here");
  });

  test.each<[TestOrder["order"], RegExp]>([
    [{ op: "exit" }, /ended without a word|died/],
    [{ op: "throw outside" }, /died: [^]*nobody catches this/],
  ])("that vanishes fails its order as a bug: %j", async (order, message) => {
    plane = new Plane("test", spawnWorker);
    const error = await errorOf(plane.carryOut<TestOrder>(order));
    expect(error.kind).toBe("bug");
    expect(error.message).toMatch(message);
    expect(await errorOf(plane.carryOut<TestOrder>({ op: "echo", text: "" }))).toBe(error);
  });

  test("that is ended cancels its order, and wakes nobody any more", async () => {
    plane = new Plane("test", spawnWorker);
    const failed = errorOf(plane.carryOut<TestOrder>({ op: "block" }));
    plane.close();
    expect((await failed).kind).toBe("cancelled");
    plane.control.raise(1);
  });

  test("that is idle or looks at its page answers", async () => {
    plane = new Plane("test", spawnWorker);
    for (let asked = 0; asked < 3; asked++) expect(planesAnswer()).toBe(true);
    const begun = Promise.withResolvers<void>();
    const result = plane.carryOut<TestOrder>({ op: "block" }, () => begun.resolve());
    await begun.promise;
    for (let answers = 0; answers < 3;) answers += planesAnswer() ? 1 : 0;
    plane.control.raise(4);
    await result;
  });

  test("that never looks at its page does not answer, until it is ended", async () => {
    plane = new Plane("test", spawnWorker);
    const begun = Promise.withResolvers<void>();
    const failed = errorOf(plane.carryOut<TestOrder>({ op: "deaf" }, () => begun.resolve()));
    await begun.promise;
    expect(planesAnswer()).toBe(true);
    expect(planesAnswer()).toBe(false);
    expect(planesAnswer()).toBe(false);
    plane.close();
    await failed;
    expect(planesAnswer()).toBe(true);
  });

  test("that cannot be made leaves nothing behind", () => {
    const refused = (): never => {
      throw new Error("no more threads");
    };
    // Not by counting descriptors: the threads of tests before may open and close some at the same time.
    const close = spyOn(ControlPage.prototype, "close");
    expect(() => new Plane("test", refused)).toThrow("no more threads");
    expect(close).toHaveBeenCalledTimes(1);
    close.mockRestore();
    plane = new Plane("test", spawnWorker);
  });
});
