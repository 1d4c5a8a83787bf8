// The plane of one connected disk: opens what it needs in its own thread, serves the ring until told to stop, and
// releases everything.
import { openFiltered } from "../block/filters/catalogue.ts";
import { FileTarget } from "../block/targets/file.ts";
import { XentoolError } from "../core/errors.ts";
import { configureLogging, moduleLogger } from "../core/log.ts";
import type { Mapping } from "../native/memory.ts";
import { errnoText } from "../native/shim.ts";
import { Reactor } from "../native/reactor.ts";
import type { CarryOut } from "../plane/answer.ts";
import { failureOf } from "../plane/protocol.ts";
import { openPlatform } from "../platform/open.ts";
import { ABI_X86_32, ABI_X86_64, SECTOR_SIZE, type BlkifAbi } from "../protocol/blkif.ts";
import { RING_MARK, RING_REQ_PROD, RING_RSP_PROD, ringSlots } from "../protocol/ring.ts";
import { BlkbackControl } from "./blkback-control.ts";
import type { BlkbackOrder } from "./blkback-orders.ts";
import { Journal } from "./journal.ts";
import { BlockQueue } from "./queue.ts";
import { RateLimiter } from "./rate-limiter.ts";
import { StatsPage } from "./stats.ts";

/** Errnos that blame the guest's keys; every other one blames the host. */
const NAMED_WRONGLY = new Set(["EINVAL", "ENOENT", "ESRCH"]);

/** Connects, serves, disconnects. Everything opened is closed again, whatever happens. */
export const carryOutBlkbackOrder: CarryOut<BlkbackOrder> = (order, page, report) => {
  configureLogging(order.verbosity, `xentool: ${order.name}`);
  using cleanup = new DisposableStack();
  const abi = order.abi === "x86_32" ? ABI_X86_32 : ABI_X86_64;
  const control = new BlkbackControl(page);
  const platform = cleanup.adopt(openPlatform(order.platform), (it) => it.close());
  const channels = cleanup.adopt(platform.openEventChannels(), (it) => it.close());
  channels.restrict(order.frontend);
  const grants = cleanup.adopt(platform.openGrantTable(), (it) => it.close());
  const mapped = openNamed(() => grants.map(order.frontend, order.refs, "rw"));
  const ring = cleanup.adopt(mapped, (it) => it.close());
  const port = openNamed(() => channels.bindInterdomain(order.frontend, order.remotePort));
  cleanup.defer(() => channels.unbind(port));
  const stats = cleanup.adopt(StatsPage.attach(order.statsPath), (it) => it.close());
  const limits = { ...order.limits };
  // Closed in the order they were opened: the reactor first, because its operations in flight use the queue's memory.
  const closing: { close(): void }[] = [];
  cleanup.defer(() => closing.forEach((it) => it.close()));
  const depth = 1024;
  const reactor = Reactor.open(depth, order.engine);
  closing.push(reactor);
  const { name: device } = order;
  const context = { reactor, device, sizeBytes: () => limits.sectors512 * SECTOR_SIZE };
  const wasUsed = Atomics.load(ring.words, RING_RSP_PROD) !== 0;
  const journal = cleanup.adopt(openJournal(order, ring, abi), (it) => it.close());
  const limiter = new RateLimiter(reactor, control.limits);
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
    limiter,
    counters: stats.counters,
    journal,
    refreshLimits: () => {
      limits.sectors512 = control.sectors512;
    },
  });
  closing.push(queue);
  report("connected");
  // The former server may have been killed between a response and its event.
  if (wasUsed) channels.notify(port);
  reactor.watch(control.wakeFd, () => {
    control.drain();
    limiter.change(control.limits);
  });
  queue.run(() => control.stopped);
  const { failure } = queue;
  const closes = failure === undefined ? !control.leaves : failure.kind === "protocol";
  const errno = closes ? queue.flush() : 0;
  return { failure: failure && failureOf(failure), lost: errno === 0 ? undefined : errnoText(errno) };
};

/** Opens what the guest has named in its keys: if it does not exist or is not meant for us, the guest is at fault. */
function openNamed<T>(open: () => T): T {
  try {
    return open();
  } catch (error) {
    if (!(error instanceof XentoolError) || !NAMED_WRONGLY.has(String(error.context["errno"]))) throw error;
    throw new XentoolError("protocol", error.message, error.context);
  }
}

function openJournal(order: BlkbackOrder["order"], ring: Mapping, abi: BlkifAbi): Journal {
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
