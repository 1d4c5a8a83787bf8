// A smoke of the NBD server's fuzzer, and canaries: servers that are broken on purpose, each of which it finds.
import { expect, test } from "bun:test";
import { ByteQueue } from "../../src/blkfront/byte-queue.ts";
import { ChunkTable, CommandTable } from "../../src/blkfront/nbd-command-table.ts";
import { NbdCommands } from "../../src/blkfront/nbd-commands.ts";
import { DEAD, NbdConnection } from "../../src/blkfront/nbd-connection.ts";
import { NbdHandshake } from "../../src/blkfront/nbd-handshake.ts";
import { FrontDataPlane } from "../../src/blkfront/data-plane.ts";
import { PageRuns } from "../../src/native/page-runs.ts";
import { replace } from "./canary.ts";
import { run } from "./nbd.fuzz.ts";
import { chosenSeed } from "../support/random.ts";

const seed = chosenSeed();

test(`random clients are served as the models say (SEED=${seed})`, async () => {
  await run(2_500, seed);
}, 60_000);

/** True at each `period`th call. */
function nowAndThen(period = 50): () => boolean {
  let calls = 0;
  return () => ++calls % period === 0;
}

interface Canary {
  readonly breaks: () => () => void;
  /** What the fuzzer says. */
  readonly finding: RegExp;
}

const CANARIES: Readonly<Record<string, Canary>> = {
  "answers with another cookie": {
    breaks: () =>
      replace(NbdConnection.prototype, "reply", (whole) => {
        const isTime = nowAndThen();
        return function (this: NbdConnection, header, address, bytes) {
          if (header === 16 && isTime()) this.outputView.setUint8(this.headerAt() + 12, 0xee);
          whole.call(this, header, address, bytes);
        };
      }),
    finding: /which was not asked or is answered/,
  },
  "answers twice": {
    breaks: () =>
      replace(NbdConnection.prototype, "reply", (whole) => {
        const isTime = nowAndThen();
        return function (this: NbdConnection, header, address, bytes) {
          const isAgain = header === 16 && bytes === 0 && isTime();
          const again = new Uint8Array(this.outputView.buffer, this.headerAt(), 16).slice();
          whole.call(this, header, address, bytes);
          if (!isAgain) return;
          new Uint8Array(this.outputView.buffer, this.headerAt(), 16).set(again);
          whole.call(this, header, address, bytes);
        };
      }),
    finding: /which was not asked or is answered/,
  },
  "drops a reply": {
    breaks: () =>
      replace(NbdConnection.prototype, "reply", (whole) => {
        const isTime = nowAndThen();
        return function (this: NbdConnection, header, address, bytes) {
          if (bytes > 0 || !isTime()) whole.call(this, header, address, bytes);
        };
      }),
    finding: /before the end of the replies/,
  },
  "reads and writes the next sector": {
    breaks: () =>
      replace(FrontDataPlane.prototype, "transfer", (whole) => {
        const isTime = nowAndThen();
        return function (this: FrontDataPlane, op, tag, sector, page, bytes) {
          return whole.call(this, op, tag, isTime() ? sector + 1 : sector, page, bytes);
        };
      }),
    finding: /no client asked for|asked for twice|before all of it was done/,
  },
  "releases a chunk's pages while its data is under way": {
    breaks: () =>
      replace(FrontDataPlane.prototype, "transfer", (whole) => {
        const isTime = nowAndThen();
        return function (this: FrontDataPlane, op, tag, sector, page, bytes) {
          const isStarted = whole.call(this, op, tag, sector, page, bytes);
          if (isStarted && bytes <= 4096 && isTime()) this.pool.release(page, 1);
          return isStarted;
        };
      }),
    finding: /other bytes|not given back|differs|neither old nor new/,
  },
  "says that data is durable without a flush": {
    breaks: () => {
      const tags: number[] = [];
      const repairs = [
        replace(FrontDataPlane.prototype, "flush", () => (tag) => tags.push(tag) > 0),
        replace(
          FrontDataPlane.prototype,
          "reap",
          (whole) =>
            function (this: FrontDataPlane) {
              for (const tag of tags.splice(0)) this.onDone(tag, 0);
              return whole.call(this);
            },
        ),
      ];
      return () => repairs.forEach((repair) => repair());
    },
    finding: /before it was flushed/,
  },
  "loses pages of the pool": {
    breaks: () =>
      replace(PageRuns.prototype, "release", (whole) => {
        const isTime = nowAndThen();
        return function (this: PageRuns, start, count) {
          if (!isTime()) whole.call(this, start, count);
        };
      }),
    finding: /not given back|stands still/,
  },
  "loses rows of chunks": {
    breaks: () =>
      replace(ChunkTable.prototype, "release", (whole) => {
        const isTime = nowAndThen(5);
        return function (this: ChunkTable, row) {
          if (!isTime()) whole.call(this, row);
        };
      }),
    finding: /stands still/,
  },
  "loses rows of commands whose client is gone": {
    breaks: () =>
      replace(
        CommandTable.prototype,
        "release",
        (whole) =>
          function (this: CommandTable, row) {
            if (this.connection[row]?.state !== DEAD) whole.call(this, row);
          },
      ),
    finding: /places are not given back/,
  },
  "buries no client": {
    breaks: () => replace(NbdCommands.prototype, "abandon", () => () => false),
    finding: /places are not given back/,
  },
  "buries clients whose commands are on the ring": {
    breaks: () =>
      replace(
        NbdCommands.prototype,
        "abandon",
        (whole) =>
          function (this: NbdCommands, connection) {
            whole.call(this, connection);
            return true;
          },
      ),
    finding: /buried while|detached/,
  },
  "forgets promises": {
    breaks: () => replace(NbdConnection.prototype, "redeem", () => () => {}),
    finding: /stands still/,
  },
  "serves nobody while a client does not read": {
    breaks: () =>
      replace(NbdCommands.prototype, "advance", (whole) => {
        let slow: NbdConnection | undefined;
        return function (this: NbdCommands, connection) {
          if (slow?.wantsToSend !== true) slow = connection;
          if (slow === connection) whole.call(this, connection);
        };
      }),
    finding: /stands still: .*silent/,
  },
  "damages what it moves": {
    breaks: () =>
      replace(
        ByteQueue.prototype,
        "makeRoom",
        (whole) =>
          function (this: ByteQueue, bytes) {
            const { head } = this;
            const hasRoom = whole.call(this, bytes);
            if (head > 0 && this.head === 0 && this.size > 0) this.memory.bytes[0]++;
            return hasRoom;
          },
      ),
    finding: /other bytes|without a reason|begins with|not asked|neither old nor new|differs/,
  },
  "takes a byte too many after an option": {
    breaks: () =>
      replace(NbdHandshake.prototype, "step", (whole) => {
        const isTime = nowAndThen(5);
        return function (this: NbdHandshake, bytes) {
          const step = whole.call(this, bytes);
          return step.consumed > 4 && step.consumed < bytes.length && isTime()
            ? { ...step, consumed: step.consumed + 1 }
            : step;
        };
      }),
    finding: /handshake|stands still|without a reason|before the end/,
  },
  "answers a client in another way than was negotiated": {
    breaks: () =>
      replace(NbdHandshake.prototype, "step", (whole) => {
        return function (this: NbdHandshake, bytes) {
          const step = whole.call(this, bytes);
          if (step.outcome === "transmission") this.structured = false;
          return step;
        };
      }),
    finding: /simple reply to a read|DF|deserved|error 22/,
  },
};

test.each(Object.keys(CANARIES))(
  "a server that %s is found out",
  async (name) => {
    const canary = CANARIES[name];
    const repair = canary?.breaks();
    try {
      const failure = await run(20_000, 1).then(
        () => undefined,
        (error: unknown) => error,
      );
      expect(String(failure)).toContain("SEED=");
      const cause = (failure as Error).cause as Error;
      expect(`${cause.message}: ${String(cause.cause)}`).toMatch(canary?.finding ?? /^$/);
    } finally {
      repair?.();
    }
  },
  60_000,
);
