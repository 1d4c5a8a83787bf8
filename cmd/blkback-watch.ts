// `xentool blkback watch`: serves every disk of a kind, and hands them to its successor.
import type { OnDeviceEvent } from "../src/blkback/device/device-events.ts";
import type { Predecessor } from "../src/blkback/guests/handover.ts";
import type { SupervisorOptions } from "../src/blkback/guests/supervisor.ts";
import type { MetricsAddress } from "../src/blkback/stats/metrics-server.ts";
import type { DiskServer, WatchOptions } from "../src/blkback/watch/watch.ts";
import { onAbort, unlessAborted } from "../src/core/deadline.ts";
import type { Platform } from "../src/platform/platform.ts";
import {
  askedRates,
  explainFilters,
  JAIL_OPTION,
  SERVING_OPTIONS,
  servingOptionsOf,
  USUAL_JAIL,
} from "./blkback-serve.ts";
import { command, type ArgumentsOf } from "./lib/command.ts";
import { parseHostPort } from "./lib/host-port.ts";
import { choice, text, undecidedFlag, wholeNumber } from "./lib/option.ts";
import type { CommandContext } from "./lib/run-command.ts";
import type { Service } from "./lib/service.ts";
import { withSession, type Session } from "./lib/session.ts";
import { SignalQueue } from "./lib/signal-queue.ts";
import { counted } from "../src/core/counted.ts";

const WATCH_OPTIONS = {
  ...SERVING_OPTIONS,
  format: choice(["raw"], "Serve the bytes as they are though they look like another format"),
  kind: text("Directory name of the backends", { initial: "vbd" }),
  "any-script": undecidedFlag("All of the kind, not only script=block-xentool (default in a driver domain)"),
  isolation: choice(
    ["process", "thread"],
    "A process for the disks of each guest, or one for all with a thread for each disk",
    {
      initial: "process",
    },
  ),
  jail: JAIL_OPTION,
  "uid-base": wholeNumber("In its jail the process of domain N is user BASE + N; 0: root", 0, 2 ** 32, {
    initial: 65_536,
  }),
  metrics: text("Answer Prometheus at HOST:PORT or unix:PATH"),
};
type WatchArguments = ArgumentsOf<typeof WATCH_OPTIONS>;

export const watchCommand = command({
  name: "watch",
  summary: "Serve every disk that the toolstack creates for us: the daemon",
  options: WATCH_OPTIONS,
  timeout: "Seconds that xenstore may take to answer at the start (default 5)",
  early: explainFilters,
  examples: [
    ["xentool blkback watch", "what the systemd unit of `xentool blkback install` runs"],
    ["xentool blkback watch --metrics 127.0.0.1:9167", "with http://127.0.0.1:9167/metrics"],
  ],
  run: (argv, context) => withSession(context, (session) => runWatch(context, session, argv)),
});

async function runWatch(context: CommandContext, session: Session, argv: WatchArguments): Promise<void> {
  const { platform } = session;
  await checkIsolation(argv);
  const { checkUidBase } = await import("../src/blkback/guests/guest-users.ts");
  checkUidBase(argv.uidBase);
  const serving = await servingOptionsOf(argv, platform, context);
  const metrics = argv.metrics === undefined ? undefined : metricsAddress(argv.metrics);
  const { kind, direct, format, connections } = argv;
  const inPlace = argv.inPlace === "yes";
  // Read before anything is made: from now on a signal asks us to end, and what was made is removed.
  const { stop } = context;
  using handovers = new SignalQueue("SIGUSR2");
  const { takePredecessor } = await import("./successor.ts");
  const predecessor = takePredecessor();
  const anyScript = argv.anyScript ?? platform.domid !== 0;
  const { UNLIMITED_DISK } = await import("../src/blkback/limits/rates.ts");
  const rates = { ...UNLIMITED_DISK, ...(await askedRates(argv)) };
  const { printEvent } = await import("./lib/serving-events.ts");
  const { Service } = await import("./lib/service.ts");
  using service = new Service(stop);
  const onEvent: OnDeviceEvent = (address, event) => {
    printEvent(address, event, context.json);
    service.changed();
  };
  const jail = argv.jail ?? USUAL_JAIL;
  const { uidBase } = argv;
  const asked = { kind, direct, format, connections, inPlace };
  const options = { ...serving, ...asked, anyScript, rates, jail, uidBase, onEvent };
  using announced = new Announced(() => announceWatch(platform, metrics, serving.statsDir));
  if (predecessor === undefined) await announced.again();
  await using _ = await startAnswering(session, options);
  const { sweepRemains } = await import("../src/blkback/device/remains.ts");
  const sweepNoMore = await sweepRemains(platform, session.xenstore);
  const watch = await startWatching(argv.isolation, session, options, predecessor);
  try {
    if (predecessor !== undefined) {
      await unlessAborted(Promise.race([watch.failed, predecessor.over]), stop);
      await announced.again();
      await unlessAborted(predecessor.serves(), stop);
    }
    process.stderr.write(`xentool: serving the disks of kind ${kind}\n`);
    service.ready(
      () => `serving ${counted(watch.deviceCount, "disk")}`,
      (patienceMs) => watch.answers(patienceMs),
    );
    const handedOver = handOverWhenAsked(handovers, () =>
      handOver(watch, platform, service, announced, stop),
    );
    await unlessAborted(Promise.race([watch.failed, handedOver]), stop);
  } finally {
    await watch.stop();
    await sweepNoMore().catch(() => {});
  }
}

/** Throws `usage`. */
async function checkIsolation({ isolation, jail }: WatchArguments): Promise<void> {
  if (isolation === "process" || jail === undefined || jail === "off") return;
  const { XentoolError } = await import("../src/core/errors.ts");
  throw new XentoolError("usage", "--jail is for the processes of guests; --isolation thread has none");
}

/** Whenever we are asked to, starts a successor. Returns when one has all guests; until then we serve on. */
async function handOverWhenAsked(asked: SignalQueue, handOver: () => Promise<void>): Promise<void> {
  const { describeError } = await import("../src/core/errors.ts");
  const { priorityMark } = await import("../src/core/line-priority.ts");
  for (;;) {
    await asked.next();
    try {
      return await handOver();
    } catch (error) {
      process.stderr.write(
        `${priorityMark("error")}xentool: nothing is handed over: ${describeError(error)}\n`,
      );
    }
  }
}

async function handOver(
  watch: DiskServer,
  platform: Platform,
  service: Service,
  announced: Announced,
  stop: AbortSignal,
): Promise<void> {
  const { startSuccessor } = await import("./successor.ts");
  const { handWatchingTo } = await import("../src/blkback/host/watching.ts");
  const successor = startSuccessor(service.environment);
  using _ = onAbort(stop, () => void successor.kill());
  process.stderr.write(`xentool: process ${successor.pid} takes over\n`);
  const isFound = (pid: number): void => {
    if (platform.name === "xen") handWatchingTo(pid);
  };
  const over = async (): Promise<void> => {
    isFound(successor.pid);
    announced[Symbol.dispose]();
    await successor.over();
  };
  try {
    await watch.handOver({ ...successor, over });
  } catch (error) {
    await successor.kill();
    isFound(process.pid);
    await announced.again();
    throw error;
  }
  // Until now a service manager starts us again if we die, and from now on it.
  service.handTo(successor.pid);
  successor.letGo();
}

/** What tells others where we are, which a successor does in our place. */
class Announced implements Disposable {
  readonly #announce: () => Promise<Disposable>;
  #announced: Disposable | undefined;

  constructor(announce: () => Promise<Disposable>) {
    this.#announce = announce;
  }

  async again(): Promise<void> {
    this.#announced ??= await this.#announce();
  }

  [Symbol.dispose](): void {
    this.#announced?.[Symbol.dispose]();
    this.#announced = undefined;
  }
}

async function startWatching(
  isolation: WatchArguments["isolation"],
  { platform, xenstore }: Session,
  { jail, uidBase, ...options }: SupervisorOptions,
  predecessor: Predecessor | undefined,
): Promise<DiskServer> {
  const { spawnWorker } = await import("./spawn-worker.ts");
  if (isolation === "thread") {
    const { BackendWatch } = await import("../src/blkback/watch/watch.ts");
    predecessor?.ready(async () => {});
    await predecessor?.over;
    return BackendWatch.start(platform, xenstore, options, spawnWorker);
  }
  const { GuestSupervisor } = await import("../src/blkback/guests/supervisor.ts");
  const { spawnGuest } = await import("./spawn-guest.ts");
  const spawn = { guest: spawnGuest, worker: spawnWorker };
  return GuestSupervisor.start(platform, xenstore, { ...options, jail, uidBase }, spawn, predecessor);
}

/** Only for those who run our script: to others, state 2 alone means that the disk is there. */
async function startAnswering(
  { platform, xenstore }: Session,
  options: WatchOptions,
): Promise<AsyncDisposable | undefined> {
  if (options.anyScript) return undefined;
  const { EarlyAnswers } = await import("../src/blkback/watch/early-answers.ts");
  return EarlyAnswers.start(platform.domid, xenstore, options);
}

/** Tells others where we are: the scripts of xl, and Prometheus. */
async function announceWatch(
  platform: Platform,
  metrics: MetricsAddress | undefined,
  statsDir: string,
): Promise<Disposable> {
  const { announceWatching } = await import("../src/blkback/host/watching.ts");
  using announced = new DisposableStack();
  if (platform.name === "xen") announced.use(announceWatching());
  if (metrics !== undefined) announced.use(await startMetrics(metrics, statsDir));
  return announced.move();
}

function metricsAddress(text: string): MetricsAddress {
  const [, path] = /^unix:(.+)$/s.exec(text) ?? [];
  return path === undefined ? parseHostPort("--metrics", text) : { path };
}

/** Of all disks that are served on this host, by this process or another. */
async function startMetrics(at: MetricsAddress, dir: string): Promise<Disposable> {
  const { serveMetrics } = await import("../src/blkback/stats/metrics-server.ts");
  const { metricsText } = await import("../src/blkback/stats/metrics.ts");
  const { readAllStats } = await import("../src/blkback/stats/stats.ts");
  const server = serveMetrics(at, () => metricsText(readAllStats(dir)));
  process.stderr.write(`xentool: metrics at ${server.name}\n`);
  return server;
}
