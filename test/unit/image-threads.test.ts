// Storage that does not answer, as a file server that is gone: it keeps a thread, and nobody who wants another image.
// The threads are fakes that answer when the test says so.
import { expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { ImageThreads } from "../../src/blkback/image/image-threads.ts";
import { openImage } from "../../src/block/image.ts";
import type { OrderMessage } from "../../src/plane/protocol.ts";
import { openDescriptors } from "../support/descriptors.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

interface Asked {
  readonly path: string;
  readonly answer: () => void;
}

/** What is asked of threads, in their order. */
class FakeThreads {
  readonly asked: Asked[] = [];
  started = 0;
  ended = 0;

  readonly spawn = (): Worker => {
    this.started++;
    const target = new EventTarget();
    const postMessage = ({ id, order }: OrderMessage<string, { path: string }>): void => {
      const answer = (): void => {
        target.dispatchEvent(new MessageEvent("message", { data: { type: "done", id } }));
      };
      this.asked.push({ path: order.path, answer });
    };
    return Object.assign(target, { postMessage, terminate: () => void this.ended++ }) as unknown as Worker;
  };
}

const { signal: never } = new AbortController();

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await Bun.sleep(1);
}

test("one thread does for all, one after the other", async () => {
  const fake = new FakeThreads();
  const threads = new ImageThreads(fake.spawn, "/nowhere");
  const all = Promise.all(["a", "b", "c"].map((path) => threads.reach(path, never)));
  for (let done = 0; done < 3; done++) {
    await until(() => fake.asked.length === done + 1);
    fake.asked[done].answer();
  }
  await all;
  threads[Symbol.dispose]();
  await until(() => fake.ended === 1);
  expect([fake.asked.map(({ path }) => path).join(""), fake.started]).toEqual(["abc", 1]);
});

test("one that is late has a successor, which does what waits; and it ends when it is done", async () => {
  const fake = new FakeThreads();
  const threads = new ImageThreads(fake.spawn, "/nowhere");
  const hangs = threads.reach("gone", never);
  const next = threads.reach("there", never);
  await until(() => fake.asked.length === 2);
  fake.asked[1].answer();
  await next;
  fake.asked[0].answer();
  await hangs;
  expect([fake.started, fake.ended]).toEqual([2, 1]);
  threads[Symbol.dispose]();
  await until(() => fake.ended === 2);
});

test("whoever stops waits no longer", async () => {
  const fake = new FakeThreads();
  const threads = new ImageThreads(fake.spawn, "/nowhere");
  const stop = new AbortController();
  const hangs = threads.reach("gone", stop.signal);
  await until(() => fake.asked.length === 1);
  stop.abort();
  expect(hangs).rejects.toThrow("stopped before gone had answered");
  fake.asked[0].answer();
  threads[Symbol.dispose]();
  await until(() => fake.ended === 1);
});

test("no thread can be started: an image is closed all the same", async () => {
  const dir = temporaryDirectory();
  const path = join(dir, "a.img");
  writeFileSync(path, "a".repeat(512));
  const before = openDescriptors().length;
  const image = openImage(path, { readOnly: false, direct: false, sectorSizeBytes: 512 });
  const threads = new ImageThreads(() => {
    throw new Error("EMFILE");
  }, "/nowhere");
  await threads.close(image);
  expect(openDescriptors().length).toBe(before);
  removeDirectory(dir);
});

test("no thread can be started: that is said, and the next one is tried", async () => {
  let refuses = true;
  const fake = new FakeThreads();
  const threads = new ImageThreads(() => {
    if (refuses) throw new Error("EAGAIN");
    return fake.spawn();
  }, "/nowhere");
  expect(threads.reach("a", never)).rejects.toThrow("EAGAIN");
  await Bun.sleep(0);
  refuses = false;
  const again = threads.reach("a", never);
  await until(() => fake.asked.length === 1);
  fake.asked[0].answer();
  await again;
  threads[Symbol.dispose]();
});
