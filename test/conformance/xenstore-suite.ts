// What every xenstore must do for our client, as functions that take a `setup`: run against the embedded
// server in all its personalities, and against real xenstored and oxenstored where there is a real Xen.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import type { Xenstore } from "../../src/xenstore/client.ts";
import { errnoOf } from "../../src/xenstore/errors.ts";

export interface XenstoreTestSetup {
  /** A directory that dom0 may write to and that is removed afterwards, e.g. `/test-xentool`. */
  readonly directory: string;
  /** One more connection of domain 0. The setup closes it. */
  connect(): Promise<Xenstore>;
  /** Closes every connection and checks that the server holds nothing of them. */
  close(): Promise<void>;
}

/** The errno's name that `promise` fails with; "none" when it succeeds. */
export async function errnoFrom(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
    return "none";
  } catch (error) {
    return errnoOf(error) ?? String(error);
  }
}

/** A watch callback that keeps what it is told, and a way to wait for as many events as are expected. */
export function collector(): {
  readonly events: string[];
  add(path: string): void;
  until(count: number): Promise<string[]>;
} {
  const events: string[] = [];
  let notice = (): void => {};
  return {
    events,
    add(path) {
      events.push(path);
      notice();
    },
    async until(count) {
      while (events.length < count) await new Promise<void>((resolve) => (notice = resolve));
      return events;
    },
  };
}

/** What a server cannot do, by name: those tests are left out. */
export interface XenstoreLimits {
  /** Lists directories of more than 4096 bytes (oxenstored of Xen's own tree sends a reply that is too long). */
  readonly largeDirectories: boolean;
}

export function xenstoreSuite(
  name: string,
  open: () => Promise<XenstoreTestSetup>,
  limits: XenstoreLimits = { largeDirectories: true },
): void {
  describe(`xenstore: ${name}`, () => {
    let setup: XenstoreTestSetup;
    let xs: Xenstore;
    let dir: string;

    beforeEach(async () => {
      setup = await open();
      dir = setup.directory;
      xs = await setup.connect();
      await xs.mkdir(dir);
    });
    afterEach(async () => {
      await xs.rm(dir);
      await setup.close();
    });

    describe("nodes", () => {
      test("a value is read back, as text and as bytes", async () => {
        await xs.write(`${dir}/text`, "häßlich");
        expect(await xs.read(`${dir}/text`)).toBe("häßlich");
        const bytes = Uint8Array.from({ length: 256 }, (_, i) => i);
        await xs.writeBytes(`${dir}/bytes`, bytes);
        expect(await xs.readBytes(`${dir}/bytes`)).toEqual(bytes);
        await xs.write(`${dir}/text`, "");
        expect(await xs.read(`${dir}/text`)).toBe("");
      });

      test("writing makes the parents", async () => {
        await xs.write(`${dir}/a/b/c`, "1");
        expect(await xs.read(`${dir}/a/b`)).toBe("");
        expect(await xs.directory(`${dir}/a`)).toEqual(["b"]);
      });

      test("mkdir leaves an existing value alone", async () => {
        await xs.write(`${dir}/a`, "1");
        await xs.mkdir(`${dir}/a`);
        expect(await xs.read(`${dir}/a`)).toBe("1");
      });

      test("a missing node is ENOENT, null or false", async () => {
        expect(await errnoFrom(xs.read(`${dir}/none`))).toBe("ENOENT");
        expect(await errnoFrom(xs.directory(`${dir}/none`))).toBe("ENOENT");
        expect(await errnoFrom(xs.getPerms(`${dir}/none`))).toBe("ENOENT");
        expect(await xs.tryRead(`${dir}/none`)).toBeNull();
        expect(await xs.exists(`${dir}/none`)).toBe(false);
        expect(await xs.exists(dir)).toBe(true);
      });

      test("rm takes all below, and a missing node where the parent exists", async () => {
        await xs.write(`${dir}/a/b/c`, "1");
        await xs.rm(`${dir}/a`);
        expect(await xs.exists(`${dir}/a/b`)).toBe(false);
        await xs.rm(`${dir}/a`);
        expect(await errnoFrom(xs.rm(`${dir}/a/b`))).toBe("ENOENT");
      });

      test("bad paths are EINVAL", async () => {
        for (const path of ["", "/a//b", "/a/", "//", "/a b", "/ä", "/a%"])
          expect(await errnoFrom(xs.read(path))).toBe("EINVAL");
      });

      if (limits.largeDirectories)
        test("a directory of any size is listed", async () => {
          const names = Array.from({ length: 600 }, (_, i) => `a-rather-long-name-${i}`);
          await Promise.all(names.map((each) => xs.write(`${dir}/big/${each}`, "")));
          expect((await xs.directory(`${dir}/big`)).sort()).toEqual(names.sort());
        });

      test("permissions are set and read", async () => {
        await xs.write(`${dir}/a`, "1");
        await xs.setPerms(`${dir}/a`, [{ domid: 0, access: "read" }]);
        expect(await xs.getPerms(`${dir}/a`)).toEqual([{ domid: 0, access: "read" }]);
        await xs.write(`${dir}/a/b`, "1");
        expect(await xs.getPerms(`${dir}/a/b`)).toEqual([{ domid: 0, access: "read" }]);
      });

      test("many requests at once are each answered", async () => {
        const numbers = Array.from({ length: 500 }, (_, i) => i);
        await Promise.all(numbers.map((i) => xs.write(`${dir}/n/${i % 50}`, `${i}`)));
        const values = await Promise.all(numbers.map((i) => xs.read(`${dir}/n/${i % 50}`)));
        expect(values).toEqual(numbers.map((i) => `${450 + (i % 50)}`));
      });

      test("a value that does not fit is refused before it is sent", async () => {
        expect(await errnoFrom(xs.write(`${dir}/a`, "x".repeat(5000)))).toBe("E2BIG");
      });
    });

    describe("transactions", () => {
      test("nobody sees the changes before the commit, and everybody all of them after it", async () => {
        const other = await setup.connect();
        await xs.transaction(async (tx) => {
          await tx.write(`${dir}/a`, "1");
          await tx.write(`${dir}/b`, "2");
          expect(await tx.read(`${dir}/a`)).toBe("1");
          expect(await other.exists(`${dir}/a`)).toBe(false);
        });
        expect([await other.read(`${dir}/a`), await other.read(`${dir}/b`)]).toEqual(["1", "2"]);
      });

      test("what throws changes nothing", async () => {
        const failure = new Error("no");
        const attempt = xs.transaction(async (tx) => {
          await tx.write(`${dir}/a`, "1");
          throw failure;
        });
        expect(await attempt.catch((error: unknown) => error)).toBe(failure);
        expect(await xs.exists(`${dir}/a`)).toBe(false);
      });

      test("one who read what another changed runs again", async () => {
        const other = await setup.connect();
        await xs.write(`${dir}/n`, "0");
        let runs = 0;
        await xs.transaction(async (tx) => {
          const value = Number(await tx.read(`${dir}/n`));
          if (++runs === 1) await other.write(`${dir}/n`, "10");
          await tx.write(`${dir}/n`, `${value + 1}`);
        });
        expect(runs).toBe(2);
        expect(await xs.read(`${dir}/n`)).toBe("11");
      });

      test("counting in parallel loses nothing", async () => {
        const clients = await Promise.all([setup.connect(), setup.connect(), setup.connect()]);
        await xs.write(`${dir}/n`, "0");
        await Promise.all(
          clients.map(async (client) => {
            for (let i = 0; i < 20; i++)
              await client.transaction(async (tx) =>
                tx.write(`${dir}/n`, `${Number(await tx.read(`${dir}/n`)) + 1}`),
              );
          }),
        );
        expect(await xs.read(`${dir}/n`)).toBe("60");
      });
    });

    describe("watches", () => {
      test("a watch reports its path once, then each change below it", async () => {
        const seen = collector();
        const unwatch = await xs.watch(`${dir}/w`, seen.add);
        expect(await seen.until(1)).toEqual([`${dir}/w`]);
        await xs.write(`${dir}/w/a`, "1");
        expect(await seen.until(2)).toEqual([`${dir}/w`, `${dir}/w/a`]);
        await xs.rm(`${dir}/w`);
        expect((await seen.until(3))[2]).toBe(`${dir}/w`);
        await unwatch();
        await xs.write(`${dir}/w/b`, "1");
        expect(seen.events).toHaveLength(3);
      });

      test("removing a parent is reported as the watched path", async () => {
        await xs.write(`${dir}/p/q`, "1");
        const seen = collector();
        const unwatch = await xs.watch(`${dir}/p/q`, seen.add);
        await seen.until(1);
        await xs.rm(`${dir}/p`);
        expect(await seen.until(2)).toEqual([`${dir}/p/q`, `${dir}/p/q`]);
        await unwatch();
      });

      test("a transaction's changes are reported after its commit", async () => {
        const seen = collector();
        const unwatch = await xs.watch(`${dir}/t`, seen.add);
        await seen.until(1);
        await xs.transaction(async (tx) => {
          await tx.write(`${dir}/t/a`, "1");
          await tx.write(`${dir}/t/b`, "1");
          expect(seen.events).toHaveLength(1);
        });
        expect((await seen.until(3)).slice(1).sort()).toEqual([`${dir}/t/a`, `${dir}/t/b`]);
        await unwatch();
      });

      test("the same path and token twice is refused, and after unwatch it is free again", async () => {
        const unwatch = await xs.watch(dir, () => {}, { token: "t" });
        expect(
          (await xs.watch(dir, () => {}, { token: "t" }).catch((error: unknown) => error)) instanceof Error,
        ).toBe(true);
        await unwatch();
        await (
          await xs.watch(dir, () => {}, { token: "t" })
        )();
      });

      test("waitFor sees a value that is there, that comes, and that goes", async () => {
        const other = await setup.connect();
        await xs.write(`${dir}/s`, "1");
        expect(await xs.waitFor(`${dir}/s`, (value) => value === "1")).toBe("1");
        const coming = xs.waitFor(`${dir}/s`, (value) => value === "4", { timeoutMs: 10_000 });
        for (const state of ["2", "3", "4"]) await other.write(`${dir}/s`, state);
        expect(await coming).toBe("4");
        const going = xs.waitFor(`${dir}/s`, (value) => value === null, { timeoutMs: 10_000 });
        await other.rm(`${dir}/s`);
        expect(await going).toBeNull();
      });

      test("waitFor gives up in time, and when it is told to", async () => {
        const late = await xs
          .waitFor(`${dir}/s`, () => false, { timeoutMs: 20 })
          .catch((error: unknown) => error);
        expect(late).toMatchObject({ kind: "timeout" });
        const stopped = xs.waitFor(`${dir}/s`, () => false, { signal: AbortSignal.abort() });
        expect(await stopped.catch((error: unknown) => error)).toMatchObject({ kind: "cancelled" });
        expect(xs.statistics.watches).toBe(0);
      });
    });

    test("domains have paths, and dom0 is introduced", async () => {
      expect(await xs.getDomainPath(7)).toBe("/local/domain/7");
      expect(await xs.isDomainIntroduced(0)).toBe(true);
      expect(await xs.isDomainIntroduced(32_000)).toBe(false);
    });
  });
}
