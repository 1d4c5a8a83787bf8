// The process of one guest: serves its disks, and nobody else's, as `watch` orders from the other end of stdin and
// stdout (messages.ts). It also ends when `watch` is gone: its disks are then left to the next server, which may be
// there already and waits for their locks.
import { join } from "node:path";
import { rememberIn } from "../../block/image/known.ts";
import { unlessAborted } from "../../core/deadline.ts";
import { configureLogging } from "../../core/log.ts";
import { openPlatform } from "../../platform/open.ts";
import type { SpawnWorker } from "../../plane/plane.ts";
import { Xenstore } from "../../xenstore/client.ts";
import { disksAnswer } from "../alive.ts";
import type { OnDeviceEvent } from "../device-events.ts";
import { BackendWatch } from "../watch.ts";
import { encodeLine, linesOf, parseOrder, type GuestOrder, type GuestReport } from "./messages.ts";

export interface GuestEnds {
  readonly orders: ReadableStream<Uint8Array>;
  readonly write: (line: string) => void;
  readonly spawnWorker: SpawnWorker;
}

/**
 * Serves until an order says to end, the orders end or `stop` fires. Throws what keeps it from serving at all, as the
 * loss of xenstored.
 */
export async function serveGuest(
  { orders, write, spawnWorker }: GuestEnds,
  stop: AbortSignal,
): Promise<void> {
  const report = (it: GuestReport): void => write(encodeLine(it));
  const lines = linesOf(orders);
  const first = await nextOrder(lines);
  if (first.order !== "prepare") return;
  const { platform: descriptor, ...settings } = first.settings;
  configureLogging(settings.verbosity);
  // A guest that reboots is another domain, so its disk comes from another process.
  rememberIn(join(settings.statsDir, "served-raw"));
  const alive = (): void => {
    if (disksAnswer(settings.engine)) report({ report: "alive" });
  };
  await using cleanup = new AsyncDisposableStack();
  const platform = cleanup.adopt(openPlatform(descriptor), (it) => it.close());
  const xenstore = cleanup.adopt(await Xenstore.connect(platform), (it) => it.close());
  const workers = new ReadyWorkers(spawnWorker);
  cleanup.defer(() => workers.close());
  report({ report: "prepared" });
  if ((await orderAfterQuestions(lines, alive)).order !== "serve") return;
  const onCount = (count: number): void => report({ report: "disks", count });
  const onEvent: OnDeviceEvent = ({ devid }, event) => report({ report: "event", devid, event });
  const options = { ...settings, onCount, onEvent };
  const watch = await BackendWatch.start(platform, xenstore, options, workers.spawn);
  cleanup.defer(async () => {
    await watch.stop();
    report({ report: "left" });
  });
  void watch.settled.then(() => report({ report: "settled" }));
  await unlessAborted(Promise.race([watch.failed, orderAfterQuestions(lines, alive)]), stop);
}

/** Has the first plane's thread started before there is a disk for it: that takes longer than all the rest. */
class ReadyWorkers {
  #ready: Worker | undefined;
  readonly #spawn: SpawnWorker;

  constructor(spawn: SpawnWorker) {
    this.#spawn = spawn;
    this.#ready = this.#start();
  }

  readonly spawn: SpawnWorker = () => {
    const worker = this.#ready ?? this.#spawn();
    this.#ready = undefined;
    return worker;
  };

  close(): void {
    this.#ready?.terminate();
  }

  /** What is lacking now is said when a disk needs it. */
  #start(): Worker | undefined {
    try {
      const worker = this.#spawn();
      worker.postMessage({ prepare: "blkback" });
      worker.addEventListener("close", () => {
        if (this.#ready === worker) this.#ready = undefined;
      });
      return worker;
    } catch {
      return undefined;
    }
  }
}

/** The next order that is no question; questions are answered. */
async function orderAfterQuestions(lines: AsyncIterator<string>, alive: () => void): Promise<GuestOrder> {
  for (;;) {
    const order = await nextOrder(lines);
    if (order.order !== "alive") return order;
    alive();
  }
}

async function nextOrder(lines: AsyncIterator<string>): Promise<GuestOrder> {
  const { done, value } = await lines.next();
  return done === true ? { order: "end" } : parseOrder(value);
}
