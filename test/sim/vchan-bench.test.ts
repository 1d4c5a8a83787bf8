// `xentool vchan bench` between two processes, and what it prints.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { VchanCli, withoutWaits } from "./vchan-cli-harness.ts";

const TIMEOUT_MS = 30_000;
const AMOUNTS = ["--bytes", "1M", "--rounds", "50"];

let cli: VchanCli;
beforeEach(async () => {
  cli = await VchanCli.start();
});
afterEach(async () => {
  await cli[Symbol.asyncDispose]();
});

test(
  "each measure, as JSON and in words",
  async () => {
    for (const json of [true, false]) {
      const server = cli.run(0, "bench", "listen", "1", "bench", "--read-size", "4k", "--write-size", "8KiB");
      const client = cli.run(1, "bench", "connect", "0", "bench", ...AMOUNTS, ...(json ? ["--json"] : []));
      const { status, stdout, stderr } = await client.finished;
      expect([status, withoutWaits(stderr)]).toEqual([0, ""]);
      const served = await server.finished;
      expect([served.status, withoutWaits(served.stderr)]).toEqual([0, ""]);
      if (!json) {
        expect(stdout.toString().match(/^(send|receive|both|round-trip) /gm)).toHaveLength(4);
        continue;
      }
      const { readSize, writeSize, results } = JSON.parse(stdout.toString());
      expect([readSize, writeSize]).toEqual([8192, 4096]);
      for (const kind of ["send", "receive", "both"])
        expect(results).toContainEqual(expect.objectContaining({ kind, bytesEachWay: 2 ** 20 }));
      const [trips] = results.filter((it: { kind: string }) => it.kind === "round-trip");
      expect(trips).toMatchObject({ rounds: 50, microseconds: (trips.seconds / 50) * 1e6 });
    }
  },
  TIMEOUT_MS,
);
