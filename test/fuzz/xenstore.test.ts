// A smoke of the xenstore server's fuzzer, and canaries: servers that are broken on purpose, each of which it finds.
import { expect, test } from "bun:test";
import { Footprint } from "../../src/xenstore/server/footprint.ts";
import { Session } from "../../src/xenstore/server/session.ts";
import { StoreTree } from "../../src/xenstore/server/store.ts";
import { WatchRegistry } from "../../src/xenstore/server/watch.ts";
import { run } from "./xenstore.fuzz.ts";
import { chosenSeed } from "../support/random.ts";

const seed = chosenSeed();

test(`random requests are answered as the model answers them (SEED=${seed})`, async () => {
  await run(6_000, seed);
}, 60_000);

/** Puts `broken` in place of a method, and returns a function that puts the method back. */
function replace<T extends object, K extends keyof T>(prototype: T, name: K, broken: T[K]): () => void {
  const whole = prototype[name];
  prototype[name] = broken;
  return () => {
    prototype[name] = whole;
  };
}

const { fire } = WatchRegistry.prototype;
const { touch } = Footprint.prototype;
const { setValue } = StoreTree.prototype;

const CANARIES: Readonly<Record<string, () => () => void>> = {
  "commits although others came in between": () => replace(StoreTree.prototype, "agreesWith", () => true),
  "shows a transaction to everyone": () =>
    replace(StoreTree.prototype, "fork", function (this: StoreTree) {
      return this;
    }),
  "does not notice that what was absent has come": () =>
    replace(Footprint.prototype, "touch", function (this: Footprint, path) {
      if (path.length < 8) touch.call(this, path);
    }),
  "loses the events of what was below a removed node": () =>
    replace(WatchRegistry.prototype, "fire", function (this: WatchRegistry, change, tree) {
      fire.call(this, { ...change, removed: undefined }, tree);
    }),
  "keeps watches after a reset": () => replace(Session.prototype, "dropWatches", () => {}),
  "loses a value now and then": () =>
    replace(StoreTree.prototype, "setValue", function (this: StoreTree, path, value) {
      if (!path.endsWith("/c/c")) setValue.call(this, path, value);
    }),
};

test.each(Object.keys(CANARIES))(
  "a server that %s is found out",
  async (name) => {
    const repair = CANARIES[name]?.();
    try {
      const failure = await run(20_000, 1).then(
        () => undefined,
        (error: unknown) => error,
      );
      expect(String(failure)).toContain("SEED=");
      expect(String((failure as Error).cause)).toMatch(/the model says|Received/); // found by looking, not a crash
    } finally {
      repair?.();
    }
  },
  60_000,
);
