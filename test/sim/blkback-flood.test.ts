// A guest that never stops asking for what is answered at once. It must not keep its data plane from orders, timers and
// the clock: whoever watches the process would take it for dead, and all disks with it.
import { expect, test } from "bun:test";
import type { TargetInfo } from "../../src/block/target.ts";
import { ControlPage } from "../../src/plane/control-page.ts";
import type { Reactor } from "../../src/native/reactor.ts";
import { RING_REQ_PROD, RING_RSP_PROD } from "../../src/protocol/ring.ts";
import { RingHarness } from "./blk-harness.ts";

const ROUNDS = 2000;
/** Nothing that the guest asks for gets as far as the disk. */
const NO_DISK: TargetInfo = {
  sizeBytes: 1 << 20,
  readOnly: false,
  canDiscard: true,
  canSecureDiscard: false,
  discardGranularityBytes: 512,
  physicalSectorBytes: 512,
};

test.each([
  ["an unknown operation", (h: RingHarness): void => h.put({ op: 77 })],
  ["a discard of nothing", (h: RingHarness): void => h.putDiscard(0, 0)],
])("%s, again and again: orders are noticed, and the clock goes on", async (_name, put) => {
  const page = ControlPage.create();
  let reactor: Reactor | undefined;
  let noticed = 0;
  const h = await RingHarness.start({
    openDisk: (_end, opened) => {
      reactor = opened;
      return { info: NO_DISK, start: () => {} };
    },
  });
  reactor?.watch(page.wakeFd, () => {
    page.drain();
    noticed++;
  });
  let rounds = 0;
  let ticks = 0;
  let lastMs = reactor?.nowMs;
  page.wake();
  for (let slot = 0; slot < 32; slot++) put(h);
  const { words } = h.ring.mapping;
  h.plane.run(() => {
    if (reactor?.nowMs !== lastMs) ticks++;
    lastMs = reactor?.nowMs;
    // The slots still hold the requests where no response lies; those are bad requests as well.
    Atomics.store(words, RING_REQ_PROD, (Atomics.load(words, RING_RSP_PROD) + 32) >>> 0);
    return ++rounds > ROUNDS;
  });
  expect(noticed).toBeGreaterThan(0);
  expect(ticks).toBeGreaterThan(ROUNDS / 100);
  page.close();
  await h.close();
});
