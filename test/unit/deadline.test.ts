// Waits that end: in time, too late, or by a signal, which may have fired before; and what is left of them.
import { afterEach, beforeEach, describe, expect, jest, spyOn, test } from "bun:test";
import { endsWithin, onAbort, pause, unlessAborted, within } from "../../src/core/deadline.ts";

const LONG_MS = 60_000;
const never = new Promise<never>(() => {});
const late = (): Error => new Error("late");

/** A signal that knows its listeners; all of them want to be called once. */
class Watched {
  readonly #controller = new AbortController();
  readonly signal = this.#controller.signal;
  readonly listeners = new Set<unknown>();

  constructor() {
    const { signal, listeners } = this;
    const add = signal.addEventListener.bind(signal) as (...all: unknown[]) => void;
    const remove = signal.removeEventListener.bind(signal) as (...all: unknown[]) => void;
    spyOn(signal, "addEventListener").mockImplementation((...all: unknown[]) => {
      listeners.add(all[1]);
      expect(all[2]).toEqual({ once: true });
      add(...all);
    });
    spyOn(signal, "removeEventListener").mockImplementation((...all: unknown[]) => {
      listeners.delete(all[1]);
      remove(...all);
    });
  }

  abort(): void {
    this.#controller.abort();
    this.listeners.clear();
  }
}

let watched: Watched;
beforeEach(() => {
  jest.useFakeTimers();
  watched = new Watched();
});
afterEach(() => {
  const timers = jest.getTimerCount();
  jest.useRealTimers();
  expect([timers, watched.listeners.size]).toEqual([0, 0]);
});

describe("onAbort", () => {
  test("runs once when the signal fires", () => {
    let runs = 0;
    using _ = onAbort(watched.signal, () => runs++);
    expect(runs).toBe(0);
    watched.abort();
    watched.abort();
    expect(runs).toBe(1);
  });

  test("runs at once when the signal has fired, and then does not listen", () => {
    watched.abort();
    let runs = 0;
    const listening = onAbort(watched.signal, () => runs++);
    expect([runs, watched.listeners.size]).toEqual([1, 0]);
    listening[Symbol.dispose]();
  });

  test("taken back, it does not run; without a signal it never does", () => {
    let runs = 0;
    {
      using _ = onAbort(watched.signal, () => runs++);
      using __ = onAbort(undefined, () => runs++);
    }
    watched.abort();
    expect(runs).toBe(0);
  });
});

describe("pause", () => {
  test("waits for its time", async () => {
    const paused = pause(LONG_MS, watched.signal);
    jest.advanceTimersByTime(LONG_MS - 1);
    expect(jest.getTimerCount()).toBe(1);
    jest.advanceTimersByTime(1);
    expect(await paused).toBe(true);
  });

  test("ends with false when the signal fires, or has fired", async () => {
    const paused = pause(LONG_MS, watched.signal);
    watched.abort();
    expect(await paused).toBe(false);
    expect(await pause(LONG_MS, watched.signal)).toBe(false);
  });

  test("needs no signal", async () => {
    const paused = pause(1);
    jest.advanceTimersByTime(1);
    expect(await paused).toBe(true);
  });
});

describe("within", () => {
  test("is the result of work that ends in time, and its failure", async () => {
    expect(await within(LONG_MS, Promise.resolve(7), late)).toBe(7);
    expect(within(LONG_MS, Promise.reject(new Error("broken")), late)).rejects.toThrow("broken");
    expect(await within(0, Promise.resolve(7), late)).toBe(7);
  });

  test("fails with the error made when the time is up", async () => {
    let made = 0;
    const waiting = within(LONG_MS, never, () => new Error(`late ${++made}`));
    expect(made).toBe(0);
    jest.advanceTimersByTime(LONG_MS);
    expect(await waiting.catch(String)).toBe("Error: late 1");
  });

  test.each([undefined, Infinity])("waits as long as it takes: %p", async (timeoutMs) => {
    const { promise, resolve } = Promise.withResolvers<string>();
    const waiting = within(timeoutMs, promise, late);
    expect(jest.getTimerCount()).toBe(0);
    resolve("done");
    expect(await waiting).toBe("done");
  });

  test("work that fails after its time is nobody's", async () => {
    const { promise, reject } = Promise.withResolvers<never>();
    const waiting = within(1, promise, late);
    jest.advanceTimersByTime(1);
    expect(await waiting.catch(String)).toBe("Error: late");
    reject(new Error("too late to matter"));
  });
});

describe("unlessAborted", () => {
  test("is the result of the work, or undefined once the signal fires", async () => {
    expect(await unlessAborted(Promise.resolve(7), watched.signal)).toBe(7);
    expect(await unlessAborted(Promise.resolve(7), undefined)).toBe(7);
    const waiting = unlessAborted(never, watched.signal);
    watched.abort();
    expect(await waiting).toBeUndefined();
  });

  test("a signal that has fired ends it, but work that is done counts", async () => {
    watched.abort();
    expect(await unlessAborted(never, watched.signal)).toBeUndefined();
    expect(await unlessAborted(Promise.resolve(7), watched.signal)).toBe(7);
  });
});

describe("endsWithin", () => {
  test("tells work that ends from time that is up and from a signal", async () => {
    expect(await endsWithin(LONG_MS, Promise.resolve(), watched.signal)).toBe(true);
    const slow = endsWithin(LONG_MS, never, watched.signal);
    jest.advanceTimersByTime(LONG_MS);
    expect(await slow).toBe(false);
    const stopped = endsWithin(LONG_MS, never, watched.signal);
    watched.abort();
    expect(await stopped).toBe(false);
  });

  test("fails as the work does", () => {
    expect(endsWithin(LONG_MS, Promise.reject(new Error("broken")))).rejects.toThrow("broken");
  });
});
