// A smoke of the NBD client's fuzzer, and canaries: clients that are broken on purpose, each of which it finds.
import { expect, test } from "bun:test";
import { Coverage } from "../../src/block/targets/nbd/coverage.ts";
import { NbdClientHandshake } from "../../src/block/targets/nbd/handshake.ts";
import { NbdRequests } from "../../src/block/targets/nbd/requests.ts";
import { chosenSeed } from "../support/random.ts";
import { replace } from "./canary.ts";
import { run } from "./nbd-client.fuzz.ts";

const seed = chosenSeed();

test(`random servers are read as the models say (SEED=${seed})`, async () => {
  await run(3_000, seed);
}, 60_000);

const CANARIES: Readonly<Record<string, readonly [breaks: () => () => void, finding: RegExp]>> = {
  "puts data a byte too far": [
    () =>
      replace(
        NbdRequests.prototype,
        "locate",
        (whole) =>
          function (this: NbdRequests, slot, at) {
            whole.call(this, slot, at);
            this.address++;
          },
      ),
    /memory that is not|other bytes/,
  ],
  "refuses chunks out of order": [
    () =>
      replace(
        Coverage.prototype,
        "add",
        (whole) =>
          function (this: Coverage, slot, from, to) {
            return whole.call(this, slot, from, to) && from % 1024 !== 513;
          },
      ),
    /a good server is refused/,
  ],
  "takes a byte too many in the handshake": [
    () =>
      replace(
        NbdClientHandshake.prototype,
        "step",
        (whole) =>
          function (this: NbdClientHandshake, bytes) {
            const step = whole.call(this, bytes);
            return step.consumed > 20 ? { ...step, consumed: step.consumed + 1 } : step;
          },
      ),
    /the handshake|broke the protocol/,
  ],
};

test.each(Object.keys(CANARIES))("a client that %s is found out", async (name) => {
  const [breaks, finding] = CANARIES[name] ?? [];
  const repair = breaks?.();
  try {
    const failure = await run(20_000, 1).then(
      () => undefined,
      (error: unknown) => error,
    );
    expect(String(failure)).toContain("SEED=1");
    expect(String((failure as Error).cause)).toMatch(finding ?? /^$/);
  } finally {
    repair?.();
  }
});
