// Two processes of xentool with random streams both ways at once, every byte compared, for VCHAN_SECONDS; and
// processes killed at any moment, from before they have met until after they have parted.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { checksum, noise, VchanCli, type Running } from "./vchan-cli-harness.ts";
import { chosenSeed } from "../support/random.ts";

const seed = chosenSeed();
const seconds = Number(process.env["VCHAN_SECONDS"] ?? 2);
const TIMEOUT_MS = 60_000;
const POOL_BYTES = 1 << 20;

let cli: VchanCli;
beforeEach(async () => {
  cli = await VchanCli.start();
});
afterEach(async () => {
  await cli[Symbol.asyncDispose]();
});

/** Numbers that the seed repeats. */
let state = seed;
function below(limit: number): number {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor((state / 2 ** 32) * limit);
}

/** Pieces of all sizes, of a stream that is `pool` again and again; until the deadline, then the end. */
async function pour(
  child: Bun.Subprocess<"pipe", "pipe", "inherit">,
  pool: Buffer,
  deadline: number,
): Promise<number> {
  let sent = 0;
  // On a machine with other work longer, until each has gone round its pool.
  while (performance.now() < deadline || sent <= pool.length) {
    const at = sent % pool.length;
    const length = Math.min(below(8) === 0 ? below(200_000) : below(3000), pool.length - at) || 1;
    void child.stdin.write(pool.subarray(at, at + length));
    await child.stdin.flush();
    sent += length;
  }
  await child.stdin.end();
  return sent;
}

/** How many bytes came, all of them those of `pool`. */
async function compare(child: Bun.Subprocess<"pipe", "pipe", "inherit">, pool: Buffer): Promise<number> {
  let got = 0;
  for await (const chunk of child.stdout)
    for (let at = 0; at < chunk.length;) {
      const start = got % pool.length;
      const length = Math.min(chunk.length - at, pool.length - start);
      if (!pool.subarray(start, start + length).equals(chunk.subarray(at, at + length)))
        throw new Error(`the bytes after ${got} arrived changed`);
      at += length;
      got += length;
    }
  return got;
}

test(
  `random streams both ways for ${seconds} s, seed ${seed}`,
  async () => {
    const start = (domid: number, ...args: string[]): Bun.Subprocess<"pipe", "pipe", "inherit"> =>
      Bun.spawn(cli.argv(...args), { env: cli.env(domid), stdin: "pipe", stdout: "pipe", stderr: "inherit" });
    const ends = [
      start(0, "listen", "1", "both", "--read-size", "8192"),
      start(1, "connect", "0", "both", "--wait"),
    ] as const;
    const pools = [noise(seed, POOL_BYTES), noise(seed + 1, POOL_BYTES)] as const;
    const deadline = performance.now() + seconds * 1000;
    try {
      const [sent0, sent1, got0, got1] = await Promise.all([
        pour(ends[0], pools[0], deadline),
        pour(ends[1], pools[1], deadline),
        compare(ends[0], pools[1]),
        compare(ends[1], pools[0]),
      ]);
      expect([got0, got1]).toEqual([sent1, sent0]);
      expect(Math.min(got0, got1)).toBeGreaterThan(POOL_BYTES);
      expect(await Promise.all(ends.map(({ exited }) => exited))).toEqual([0, 0]);
    } finally {
      for (const child of ends) child.kill(9);
      await Promise.all(ends.map(({ exited }) => exited));
    }
  },
  TIMEOUT_MS + 1000 * seconds,
);

test(
  `clients killed at any moment in front of a command that answers, and the next is served; seed ${seed}`,
  async () => {
    const server = cli.run(0, "listen", "1", "echo", "--keep", "--", "cat");
    for (let round = 0; round < 8; round++) {
      const client = cli.run(1, "connect", "0", "echo", "--wait");
      void client.feed(noise(seed + round, below(3_000_000)), true).catch(() => {});
      await Bun.sleep(below(500));
      client.child.kill(9);
      await client.finished;
    }
    const last = cli.run(1, "connect", "0", "echo", "--wait");
    const bytes = noise(seed, 300_000);
    void last.feed(bytes);
    const { status, stdout } = await last.finished;
    expect([status, checksum(stdout)]).toEqual([0, checksum(bytes)]);
    server.child.kill("SIGTERM");
    expect((await server.finished).status).toBe(143);
  },
  TIMEOUT_MS,
);

test(
  `servers killed at any moment: a client ends, or finds the next; seed ${seed}`,
  async () => {
    for (let round = 0; round < 5; round++) {
      const server = cli.run(0, "listen", "1", "mortal", "--", "cat");
      const client = cli.run(1, "connect", "0", "mortal", "--wait");
      void client.feed(noise(seed + round, below(3_000_000)), true).catch(() => {});
      await Bun.sleep(below(500));
      server.child.kill(9);
      await server.finished;
      const met = await endsWithin(client, 3000);
      if (met !== undefined) {
        expect([0, 5]).toContain(met);
        continue;
      }
      // It has not met that server: it waits, and the next one is for it.
      const next = cli.run(0, "listen", "1", "mortal", "--", "cat");
      void client.child.stdin.end();
      expect((await client.finished).status).toBe(0);
      expect((await next.finished).status).toBe(0);
    }
  },
  TIMEOUT_MS,
);

/** Its status, or undefined while it still runs. */
async function endsWithin(running: Running, ms: number): Promise<number | undefined> {
  const late = Bun.sleep(ms).then(() => undefined);
  return (await Promise.race([running.finished, late]))?.status;
}
