// `xentool selftest xenstore`: what every client of a xenstore relies on, tried below a node of our own.
import { Xenstore } from "../xenstore/client.ts";
import { errnoOf } from "../xenstore/errors.ts";
import { expect, type Ground, type OnPassed } from "./check.ts";

/** As many as fit into one reply: some oxenstoreds cannot split it. */
const NAMES = 120;
const COUNTERS = 4;
const ROUNDS = 25;

export async function checkXenstore(ground: Ground, passed: OnPassed): Promise<void> {
  const { platform, xenstore, stop } = ground;
  const root = `/local/domain/${platform.domid}/xentool-selftest-${process.pid}`;
  using other = await Xenstore.connect(platform);
  try {
    await checkNodes(xenstore, `${root}/nodes`);
    passed("nodes: what was written is read, listed, and gone once it is removed");
    await checkTransactions(xenstore, other, `${root}/transactions`);
    passed("transactions: all or nothing, and no change is lost between two writers");
    await checkWatches(xenstore, other, `${root}/watches`, stop);
    passed("watches: each change is reported, in order, and none after the watch has ended");
  } finally {
    await xenstore.rm(root).catch(() => {});
  }
}

async function checkNodes(xenstore: Xenstore, dir: string): Promise<void> {
  const bytes = Uint8Array.from({ length: 256 }, (_, index) => index);
  await xenstore.writeBytes(`${dir}/a/b`, bytes);
  const read = await xenstore.readBytes(`${dir}/a/b`);
  expect(Buffer.from(bytes).equals(read), "a value of all 256 bytes is not read as it was written");
  expect((await xenstore.read(`${dir}/a`)) === "", "a parent that was made on the way is not empty");
  const names = Array.from({ length: NAMES }, (_, index) => `a-name-of-some-length-${index}`);
  await Promise.all(names.map((name) => xenstore.write(`${dir}/many/${name}`, name)));
  const listed = (await xenstore.directory(`${dir}/many`)).sort();
  expect(listed.join() === names.sort().join(), `a directory of ${NAMES} names is not listed whole`);
  const values = await Promise.all(names.map((name) => xenstore.read(`${dir}/many/${name}`)));
  expect(values.join() === names.join(), `${NAMES} requests at once got each other's answers`);
  await xenstore.rm(dir);
  const errno = await xenstore.read(`${dir}/a/b`).then(() => undefined, errnoOf);
  expect(errno === "ENOENT", `reading a node that was removed fails with ${errno ?? "nothing"}, not ENOENT`);
}

async function checkTransactions(xenstore: Xenstore, other: Xenstore, dir: string): Promise<void> {
  await xenstore.write(`${dir}/n`, "0");
  await xenstore.transaction(async (tx) => {
    await tx.write(`${dir}/inside`, "1");
    expect(!(await other.exists(`${dir}/inside`)), "others see what an open transaction wrote");
  });
  expect((await other.tryRead(`${dir}/inside`)) === "1", "what a transaction wrote is not there after it");
  const count = async (client: Xenstore): Promise<void> => {
    for (let round = 0; round < ROUNDS; round++)
      await client.transaction(async (tx) =>
        tx.write(`${dir}/n`, String(Number(await tx.read(`${dir}/n`)) + 1)),
      );
  };
  const clients = Array.from({ length: COUNTERS }, (_, index) => (index % 2 === 0 ? xenstore : other));
  await Promise.all(clients.map(count));
  const sum = await xenstore.read(`${dir}/n`);
  expect(sum === String(COUNTERS * ROUNDS), `${COUNTERS * ROUNDS} increments in transactions made ${sum}`);
}

async function checkWatches(
  xenstore: Xenstore,
  other: Xenstore,
  dir: string,
  signal: AbortSignal,
): Promise<void> {
  const seen: string[] = [];
  const unwatch = await xenstore.watch(`${dir}/w`, (path) => void seen.push(path));
  const expected = [`${dir}/w`];
  for (let index = 0; index < ROUNDS; index++) {
    expected.push(`${dir}/w/${index}`);
    await other.write(`${dir}/w/${index}`, "1");
  }
  // Its own event comes after those of the watch.
  await xenstore.waitFor(`${dir}/w/${ROUNDS - 1}`, (value) => value === "1", { signal });
  await other.write(`${dir}/mark`, "1");
  await xenstore.waitFor(`${dir}/mark`, (value) => value === "1", { signal });
  expect(seen.join() === expected.join(), `a watch reported ${seen.join(" ")}, not ${expected.join(" ")}`);
  await unwatch();
  await other.write(`${dir}/w/late`, "1");
  await xenstore.waitFor(`${dir}/w/late`, (value) => value === "1", { signal });
  expect(seen.length === expected.length, "a watch that has ended still reports changes");
}
