// The bodies of `xentool vchan bench`: the two ends, and the resulting table or JSON.
import { requireSize } from "../../src/core/sizes.ts";
import type { SpawnWorker } from "../../src/plane/plane.ts";
import type { VchanOrder } from "../../src/vchan/vchan-orders.ts";
import { BENCH_KINDS, type BenchKind, type BenchMeasure } from "../../src/vchan/bench.ts";
import type { VchanRole } from "../../src/vchan/endpoint.ts";
import { VchanSession } from "../../src/vchan/session.ts";
import { formatBytes } from "./output.ts";
import type { CommandContext } from "./run-command.ts";
import { waitPrinter } from "./vchan-progress.ts";
import type { BenchConnectArguments, BenchListenArguments } from "./vchan-options.ts";
import { openPlace, ordersOf } from "./vchan-relay.ts";

/**
 * First everything runs unmeasured with this part of the amounts, repeatedly for this long: code that runs for the
 * first time is still being compiled, and by the same processor if there is only one.
 */
const WARM_UP = 0.1;
const WARM_UP_MS = 3000;

/** Does the jobs of one client, until it closes. */
export async function runBenchListen(
  argv: BenchListenArguments,
  context: CommandContext,
  spawnWorker: SpawnWorker,
): Promise<void> {
  const orders = ordersOf(argv);
  await inSession(argv, context, spawnWorker, "server", (session) =>
    session.serve(orders, ({ plane }) => plane.carryOut<VchanOrder<"bench-serve">>({ op: "bench-serve" })),
  );
}

/** Measures everything and prints it. */
export async function runBenchConnect(
  argv: BenchConnectArguments,
  context: CommandContext,
  spawnWorker: SpawnWorker,
): Promise<void> {
  const bytes = requireSize("--bytes", argv.bytes, 1, 2 ** 40);
  const { timeoutMs } = context;
  await inSession(argv, context, spawnWorker, "client", (session) =>
    session.connect(true, async ({ plane, readSize, writeSize }) => {
      const run = (kind: BenchKind, part: number): Promise<BenchMeasure> => {
        const amount = kind === "round-trip" ? argv.rounds : bytes;
        return plane.carryOut<VchanOrder<"bench-run">>({
          op: "bench-run",
          job: { kind, amount: Math.ceil(amount * part) },
          timeoutMs,
        });
      };
      const warmUntil = performance.now() + WARM_UP_MS;
      do for (const kind of BENCH_KINDS) await run(kind, WARM_UP);
      while (performance.now() < warmUntil);
      const results = [];
      for (const kind of BENCH_KINDS) {
        const measure = await run(kind, 1);
        results.push(figuresOf(measure));
        if (!context.json) process.stdout.write(`${describe(measure)}\n`);
      }
      if (context.json) process.stdout.write(`${JSON.stringify({ readSize, writeSize, results })}\n`);
    }),
  );
}

async function inSession(
  argv: Parameters<typeof openPlace>[0],
  context: CommandContext,
  spawnWorker: SpawnWorker,
  role: VchanRole,
  body: (session: VchanSession) => Promise<unknown>,
): Promise<void> {
  const { platform, place } = await openPlace(argv, context, role);
  using _ = platform;
  const { stop: signal, force, timeoutMs, json } = context;
  const onWait = json ? {} : { onWait: waitPrinter() };
  const options = { platform, place, spawnWorker, signal, force, timeoutMs, ...onWait };
  await using session = await VchanSession.open(options, role);
  await body(session);
}

function figuresOf(measure: BenchMeasure): Record<string, number | string> {
  const { kind, amount, seconds, cpuSeconds, eventsSent, eventsReceived } = measure;
  const common = { kind, seconds, cpuSeconds, eventsSent, eventsReceived };
  if (kind === "round-trip") return { ...common, rounds: amount, microseconds: (seconds / amount) * 1e6 };
  return { ...common, bytesEachWay: amount, bytesPerSecond: amount / seconds };
}

function describe(measure: BenchMeasure): string {
  const { kind, amount, seconds, cpuSeconds, eventsSent, eventsReceived } = measure;
  const figure =
    kind === "round-trip"
      ? `${((seconds / amount) * 1e6).toFixed(1)} µs each`
      : `${formatBytes(amount / seconds)}/s${kind === "both" ? " each way" : ""}`;
  const events = `${eventsSent} events sent, ${eventsReceived} received`;
  return `${kind.padEnd(10)}  ${figure.padEnd(22)}  ${cpuSeconds.toFixed(2)} s of CPU, ${events}`;
}
