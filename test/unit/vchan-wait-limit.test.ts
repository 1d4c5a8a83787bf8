// A limited wait that cannot begin leaves nothing behind that would keep the process from ending.
import { expect, spyOn, test } from "bun:test";
import { XentoolError } from "../../src/core/errors.ts";
import { toDomid } from "../../src/core/types.ts";
import { WaitLimit } from "../../src/vchan/wait-limit.ts";
import type { Xenstore } from "../../src/xenstore/client.ts";

test("xenstored fails as the wait begins: no timer and no listener stay", async () => {
  let listeners = 0;
  const failure = new XentoolError("io", "xenstored went away");
  const xenstore = {
    onClose: () => {
      listeners++;
      return () => listeners--;
    },
    isDomainIntroduced: () => Promise.reject(failure),
  } as unknown as Xenstore;
  const begun = spyOn(globalThis, "setTimeout");
  const ended = spyOn(globalThis, "clearTimeout");
  try {
    const starting = WaitLimit.start({ xenstore, peer: toDomid(1), timeoutMs: 3_600_000, what: "nothing" });
    expect(await starting.catch((error: unknown) => error)).toBe(failure);
    const timer: unknown = begun.mock.results[0]?.value;
    expect([begun.mock.calls.length, ended.mock.calls.map(([it]) => it as unknown), listeners]).toEqual([
      1,
      [timer],
      0,
    ]);
  } finally {
    begun.mockRestore();
    ended.mockRestore();
  }
});
