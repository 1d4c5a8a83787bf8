// The process of one guest: serves its disks, and nobody else's, as `watch` orders from the other end of stdin and
// stdout (messages.ts). The kernel ends it with `watch`, so that one that hangs keeps no lock from the next server,
// which may be there already and waits for it.
import { closeSync } from "node:fs";
import { unlessAborted } from "../../core/deadline.ts";
import { configureLogging } from "../../core/log.ts";
import { adoptDescriptor } from "../../native/descriptors.ts";
import { endWithParent } from "../../native/process.ts";
import type { EngineKind } from "../../native/reactor.ts";
import { openPlatform } from "../../platform/open.ts";
import { openGrantDevice } from "../../platform/xen.ts";
import type { SpawnWorker } from "../../plane/plane.ts";
import { Xenstore } from "../../xenstore/client.ts";
import { disksAnswer } from "../stats/alive.ts";
import type { OnDeviceEvent } from "../device/device-events.ts";
import { enterGuestJail } from "../jail.ts";
import { BackendWatch, type WatchHelp } from "../watch/watch.ts";
import { AskedImages } from "./asked-images.ts";
import {
  encodeLine,
  linesOf,
  parseOrder,
  type GuestOrder,
  type GuestReport,
  type GuestSettings,
} from "./messages.ts";

export interface GuestEnds {
  readonly orders: ReadableStream<Uint8Array>;
  readonly write: (line: string) => void;
  /** Through which `watch` sends descriptors. */
  readonly descriptors: number;
  /** Our way to xenstore. */
  readonly xenstore: number;
  readonly spawnWorker: SpawnWorker;
}

/**
 * Serves until an order says to end, the orders end or `stop` fires. Throws what keeps it from serving at all, as the
 * loss of xenstored. What is opened before the jail is entered has nothing to do with any disk.
 */
export async function serveGuest(ends: GuestEnds, stop: AbortSignal): Promise<void> {
  const report = (it: GuestReport): void => ends.write(encodeLine(it));
  endWithParent();
  for (const fd of [ends.descriptors, ends.xenstore]) adoptDescriptor(fd);
  const images = new AskedImages(ends.descriptors, (ask) => report({ report: "ask", ...ask }));
  const orders = new OrderLines(ends.orders, images, () => report({ report: "alive" }));
  const settings = await orders.prepare;
  if (settings === undefined) return;
  const { platform: descriptor, jail, isRelayed, user, ...rest } = settings;
  configureLogging(settings.verbosity);
  await using cleanup = new AsyncDisposableStack();
  const platform = cleanup.adopt(openPlatform(descriptor), (it) => it.close());
  const way = { kind: "inherited", path: "`watch`", fd: ends.xenstore } as const;
  const xenstore = cleanup.adopt(await Xenstore.connect(isRelayed ? way : platform), (it) => it.close());
  const workers = new ReadyWorkers(ends.spawnWorker);
  cleanup.defer(() => workers.close());
  const ground = { platform: descriptor, statsDir: settings.statsDir };
  const lend = jail === "off" || platform.name === "sim" ? undefined : lenderOf(images, cleanup);
  const jailed = jail === "off" ? {} : { jailed: enterGuestJail(jail === "strict", ground, user) };
  report({ report: "prepared" });
  if (!(await orders.serve)) return;
  const onCount = (count: number): void => report({ report: "disks", count });
  const onEvent: OnDeviceEvent = ({ devid }, event) => report({ report: "event", devid, event });
  const options = { ...rest, ...jailed, onCount, onEvent };
  const watch = await BackendWatch.start(platform, xenstore, options, workers.spawn, {
    open: images.open,
    lock: images.lock,
    lend,
  });
  cleanup.defer(async () => {
    await watch.stop();
    report({ report: "left" });
  });
  void watch.settled.then(() => report({ report: "settled" }));
  await unlessAborted(Promise.race([watch.failed, orders.end]), stop);
}

/**
 * Xen's devices for planes. That of grants must be opened by the process that maps them; one is enough for all. Event
 * channels come from `watch` for each connection, which may use those of this guest only.
 */
function lenderOf(images: AskedImages, cleanup: AsyncDisposableStack): WatchHelp["lend"] {
  const gntdev = cleanup.adopt(openGrantDevice(), closeSync);
  return async (devid, until) => ({ evtchn: until.adopt(await images.channels(devid), closeSync), gntdev });
}

/** Starts the first plane's thread before there is a disk for it, because that takes longer than all the rest. */
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

  /** An error here will come again, and be reported, when a disk needs the worker. */
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

/** The orders as they come. Those beside `prepare`, `serve` and `end` are carried out here. */
class OrderLines {
  /** Undefined or false if the end came first. */
  readonly prepare: Promise<GuestSettings | undefined>;
  readonly serve: Promise<boolean>;
  readonly end: Promise<void>;
  readonly #prepare = Promise.withResolvers<GuestSettings | undefined>();
  readonly #serve = Promise.withResolvers<boolean>();
  readonly #end = Promise.withResolvers<void>();
  readonly #images: AskedImages;
  readonly #alive: () => void;
  #engine: EngineKind | undefined;

  constructor(orders: ReadableStream<Uint8Array>, images: AskedImages, alive: () => void) {
    this.#images = images;
    this.#alive = alive;
    [this.prepare, this.serve, this.end] = [this.#prepare.promise, this.#serve.promise, this.#end.promise];
    this.end.catch(() => {});
    void this.#listen(orders);
  }

  async #listen(orders: ReadableStream<Uint8Array>): Promise<void> {
    try {
      for await (const line of linesOf(orders)) this.#take(parseOrder(line));
    } catch (error) {
      this.#end.reject(error);
    }
    this.#images.end();
    this.#take({ order: "end" });
  }

  #take(order: GuestOrder): void {
    switch (order.order) {
      case "prepare":
        this.#engine = order.settings.engine;
        return this.#prepare.resolve(order.settings);
      case "serve":
        return this.#serve.resolve(true);
      case "alive":
        if (this.#engine === undefined || disksAnswer(this.#engine)) this.#alive();
        return;
      case "answer":
        return this.#images.take(order);
      case "trouble":
        return this.#images.trouble(order);
      case "end":
        this.#prepare.resolve(undefined);
        this.#serve.resolve(false);
        return this.#end.resolve();
    }
  }
}
