// The data-plane worker of one connected device: opens what it needs in its own thread, serves the ring
// until told to stop, and gives everything back. It blocks in one place, so its orders come through shared
// memory and an eventfd, not through messages.
import { openFiltered } from "../block/filters/catalogue.ts";
import { FileTarget } from "../block/targets/file.ts";
import type { Image } from "../block/image.ts";
import { describeError, kindOf, type ErrorKind } from "../core/errors.ts";
import { configureLogging, moduleLogger } from "../core/log.ts";
import type { Domid, EvtchnPort } from "../core/types.ts";
import { Reactor, type EngineKind } from "../native/reactor.ts";
import type { Mapping } from "../native/memory.ts";
import { errnoText, shim } from "../native/shim.ts";
import { openPlatform } from "../platform/open.ts";
import type { PlatformDescriptor } from "../platform/platform.ts";
import { ABI_X86_32, ABI_X86_64, SECTOR_SIZE, type BlkifAbi } from "../protocol/blkif.ts";
import { RING_MARK, RING_REQ_PROD, RING_RSP_PROD, ringSlots } from "../protocol/ring.ts";
import { Journal } from "./journal.ts";
import { BlockQueue } from "./queue.ts";
import type { DiskLimits } from "./requests.ts";
import { StatsPage } from "./stats.ts";

/** The order that starts a worker. Structured-cloneable. */
export interface BlkbackOrder {
  readonly kind: "blkback";
  readonly name: string;
  readonly verbosity: number;
  readonly platform: PlatformDescriptor;
  readonly frontend: Domid;
  readonly refs: readonly number[];
  readonly remotePort: EvtchnPort;
  readonly abi: BlkifAbi["name"];
  readonly image: Image;
  readonly engine: EngineKind;
  /** As `--filter` has them. */
  readonly filters: readonly string[];
  readonly limits: DiskLimits;
  readonly grantMode: "copy" | "map";
  readonly statsPath: string;
  readonly journalPath: string;
  /** Int32: see CONTROL_*. */
  readonly control: SharedArrayBuffer;
  readonly wakeFd: number;
}

/** Set to one of STOP_* to make the worker complete what it has started, stop and clean up. */
export const CONTROL_STOP = 0;
/** Another server may go on with the ring. */
export const STOP_LEAVE = 1;
/** The guest has let go: what it wrote is made durable first. */
export const STOP_CLOSE = 2;
export type StopOrder = typeof STOP_LEAVE | typeof STOP_CLOSE;
/** The capacity in sectors: low and high 32 bits. */
export const CONTROL_SECTORS_LOW = 1;
export const CONTROL_SECTORS_HIGH = 2;
export const CONTROL_WORDS = 3;

export type BlkbackReport =
  | { readonly type: "connected" }
  | { readonly type: "failed"; readonly kind: ErrorKind; readonly message: string }
  /** `failure`: why it stopped by itself. `lost`: why what the guest wrote may not be on the disk. */
  | { readonly type: "stopped"; readonly failure: string | undefined; readonly lost: string | undefined };

/** Runs in the worker: serves until stopped. Reports; never throws. */
export function runBlkbackWorker(order: BlkbackOrder, report: (message: BlkbackReport) => void): void {
  configureLogging(order.verbosity, `xentool: ${order.name}`);
  try {
    const end = serve(order, () => report({ type: "connected" }));
    report({ type: "stopped", ...end });
  } catch (error) {
    report({ type: "failed", kind: kindOf(error), message: describeError(error) });
  }
}

interface ServeEnd {
  readonly failure: string | undefined;
  readonly lost: string | undefined;
}

/** Connects, serves, disconnects. Everything opened is closed in the reverse order, whatever happens. */
function serve(order: BlkbackOrder, onConnected: () => void): ServeEnd {
  using cleanup = new DisposableStack();
  const abi = order.abi === "x86_32" ? ABI_X86_32 : ABI_X86_64;
  const control = new Int32Array(order.control);
  const platform = cleanup.adopt(openPlatform(order.platform), (it) => it.close());
  const channels = cleanup.adopt(platform.openEventChannels(), (it) => it.close());
  channels.restrict(order.frontend);
  const grants = cleanup.adopt(platform.openGrantTable(), (it) => it.close());
  const ring = cleanup.adopt(grants.map(order.frontend, order.refs, "rw"), (it) => it.close());
  const port = channels.bindInterdomain(order.frontend, order.remotePort);
  cleanup.defer(() => channels.unbind(port));
  const stats = cleanup.adopt(StatsPage.attach(order.statsPath), (it) => it.close());
  const limits = { ...order.limits };
  // Closed in this order: the reactor first, because what it has in flight uses the queue's memory.
  const closing: { close(): void }[] = [];
  cleanup.defer(() => closing.forEach((it) => it.close()));
  const depth = 1024;
  const reactor = Reactor.open(depth, order.engine);
  closing.push(reactor);
  const { name: device } = order;
  const context = { reactor, device, sizeBytes: () => limits.sectors512 * SECTOR_SIZE };
  const wasUsed = Atomics.load(ring.words, RING_RSP_PROD) !== 0;
  const journal = cleanup.adopt(openJournal(order, ring, abi), (it) => it.close());
  const queue = new BlockQueue({
    domid: order.frontend,
    abi,
    ring,
    channels,
    port,
    grants,
    reactor,
    openTarget: (onEnd) =>
      openFiltered(
        order.filters,
        (innerEnd) => new FileTarget(order.image, reactor, innerEnd),
        onEnd,
        context,
      ),
    limits,
    grantMode: order.grantMode,
    counters: stats.counters,
    journal,
    refreshLimits: () => {
      const high = Atomics.load(control, CONTROL_SECTORS_HIGH);
      limits.sectors512 = high * 2 ** 32 + (Atomics.load(control, CONTROL_SECTORS_LOW) >>> 0);
    },
  });
  closing.push(queue);
  onConnected();
  // The former server may have been killed between an answer and its event.
  if (wasUsed) channels.notify(port);
  reactor.watch(order.wakeFd, () => void shim.xt_eventfd_drain(order.wakeFd));
  queue.run(() => Atomics.load(control, CONTROL_STOP) !== 0);
  const leaves = Atomics.load(control, CONTROL_STOP) === STOP_LEAVE;
  const errno = leaves ? 0 : queue.flush();
  return { failure: queue.failure, lost: errno === 0 ? undefined : errnoText(errno) };
}

function openJournal(order: BlkbackOrder, ring: Mapping, abi: BlkifAbi): Journal {
  const state = {
    slots: ringSlots(order.refs.length, abi.slotBytes),
    reqProd: Atomics.load(ring.words, RING_REQ_PROD),
    rspProd: Atomics.load(ring.words, RING_RSP_PROD),
    mark: Atomics.load(ring.words, RING_MARK),
  };
  const setMark = (mark: number): void => void Atomics.store(ring.words, RING_MARK, mark);
  const journal = Journal.open(order.journalPath, state, setMark);
  if (state.rspProd !== 0)
    moduleLogger("blkback").info(`${journal.unansweredCount} requests in flight are carried out again`);
  return journal;
}
