// A plane of one connected disk: opens what it needs in its own thread, serves its rings until told to stop, and
// releases everything. All queues of the disk are its own, or some of them (shared-disk.ts).
import { configureLogging, moduleLogger } from "../../core/log.ts";
import { PAGE_SIZE } from "../../core/types.ts";
import { enterPlaneJail } from "../../native/jail.ts";
import type { Mapping } from "../../native/memory.ts";
import { check, errnoText } from "../../native/shim.ts";
import { Reactor } from "../../native/reactor.ts";
import type { CarryOut } from "../../plane/answer.ts";
import { failureOf } from "../../plane/protocol.ts";
import { openPlatform } from "../../platform/open.ts";
import type { EventChannels, GrantTable } from "../../platform/platform.ts";
import { ABI_X86_32, ABI_X86_64, SECTOR_SIZE } from "../../protocol/blkif.ts";
import { RING_MARK, RING_REQ_PROD, RING_RSP_PROD, ringSlots } from "../../protocol/ring.ts";
import { BlkbackControl } from "./blkback-control.ts";
import type { BlkbackOrder } from "./blkback-orders.ts";
import { CLOSING_PATIENCE_MS, MAX_WATCHES, reactorDepth, SILENT_PATIENCE_MS } from "../bounds.ts";
import { Journal, journalPath, mayBelong } from "./journal.ts";
import { openRings, type OpenRing } from "./open-rings.ts";
import { BackDataPlane } from "./data-plane.ts";
import { RateLimiter } from "../limits/rate-limiter.ts";
import { ServedTarget } from "./served-target.ts";
import { ServerLine } from "./server-line.ts";
import { SharedDisk } from "./shared-disk.ts";
import { StatsPage } from "../stats/stats.ts";
import { counted } from "../../core/counted.ts";

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
  const rings = openOrderedRings(order, grants, channels, cleanup);
  const [{ ring: firstRing }] = rings;
  const stats = cleanup.adopt(StatsPage.attach(order.statsPath), (it) => it.close());
  const slots = ringSlots(firstRing.sizeBytes / PAGE_SIZE, abi.slotBytes);
  const depth = reactorDepth(rings.length * slots);
  const reactor = Reactor.open(depth, order.engine, MAX_WATCHES);
  // Closed in this order: the target before the reactor, and both before the memory that operations in flight use.
  const closing: { close(): void }[] = [reactor];
  cleanup.defer(() => closing.forEach((it) => it.close()));
  const disk = { ...order.disk };
  const shared = new SharedDisk(order.shared, order.seat);
  const used = rings.filter(({ ring }) => Atomics.load(ring.words, RING_RSP_PROD) !== 0);
  const hasOthers = rings.length > 1 || shared.wakeFd !== undefined;
  const lanes = rings.map(({ queue, ring, port }) => {
    const path = journalPath(order.statsPath, queue);
    const journal = cleanup.adopt(openJournal(path, ring, slots), (it) => it.close());
    return { ring, port, queue: hasOthers ? queue : undefined, journal, counters: stats.section(queue) };
  });
  const limiter = new RateLimiter(reactor, control.rates, shared);
  const server = new ServerLine(control, report, stats.counters);
  const context = { reactor, device: order.name, sizeBytes: () => disk.sectors512 * SECTOR_SIZE };
  const target = new ServedTarget({ order, context, depth, isTakenOver: used.length > 0, server });
  closing.unshift(target);
  const { frontend: domid, grantMode } = order;
  const refresh = (): void => {
    disk.sectors512 = control.sectors512;
    if (control.hasNews) limiter.change(control.rates);
  };
  const openTarget = target.open;
  const ground = { domid, abi, lanes, channels, grants, reactor, disk, grantMode, limiter, shared };
  const plane = new BackDataPlane({ ...ground, openTarget, refresh });
  closing.push(plane);
  if (order.jail !== undefined) enterPlaneJail(order.jail);
  moduleLogger("blkback").info(
    `${counted(rings.length, "queue")} of ${counted(firstRing.sizeBytes / PAGE_SIZE, "ring page")}, ${abi.protocol}`,
  );
  reactor.watch(control.wakeFd, () => {
    control.drain();
    limiter.change(control.rates);
    server.take();
    if (control.leaves) target.remote?.limitEnding(CLOSING_PATIENCE_MS);
    else if (control.stopped) target.remote?.limitHold(CLOSING_PATIENCE_MS);
    if (control.hurries) target.remote?.limitSilence(SILENT_PATIENCE_MS);
  });
  if (awaitOthers(shared, reactor, control)) {
    report({ type: "connected" });
    // The former server may have been killed between a response and its event.
    for (const { port } of used) channels.notify(port);
  }
  return serve(plane, target, control);
};

/**
 * Waits until all planes of the disk are ready: one may know of a flush that failed under a former server, or find that
 * the disk cannot be served. False: told to stop.
 */
function awaitOthers(shared: SharedDisk, reactor: Reactor, control: BlkbackControl): boolean {
  if (shared.wakeFd !== undefined) reactor.watch(shared.wakeFd, () => shared.drain());
  shared.ready();
  while (!shared.areAllReady && !control.stopped) {
    check(reactor.wait(1, -1), "wait for the disk's other threads");
    reactor.dispatch();
  }
  return !control.stopped;
}

/** Serves until told to stop, and makes the guest's writes durable unless a successor goes on. */
function serve(plane: BackDataPlane, target: ServedTarget, control: BlkbackControl): BlkbackOrder["result"] {
  plane.run(
    // A successor must not send newer writes before a server that has been given up has replied to ours.
    () => control.stopped && !(control.leaves && target.remote?.isEnding === true),
    () =>
      (control.leaves && target.remote?.isStuck === true) ||
      (plane.failure !== undefined && target.remote?.isServing === false),
  );
  const { failure } = plane;
  const closes = failure === undefined ? !control.leaves : failure.kind === "protocol";
  target.isOver = closes;
  if (closes) target.remote?.limitHold(CLOSING_PATIENCE_MS);
  const errno = closes ? plane.flush() : 0;
  return { failure: failure && failureOf(failure), lost: errno === 0 ? undefined : errnoText(errno) };
}

function openOrderedRings(
  { frontend, sets, statsPath, shared, seat }: BlkbackOrder["order"],
  grants: GrantTable,
  channels: EventChannels,
  cleanup: DisposableStack,
): ReturnType<typeof openRings> {
  const areOurs = (opened: readonly OpenRing[]): boolean =>
    opened.every(({ ring, queue }) => mayBelong(journalPath(statsPath, queue), markOf(ring)));
  const planes = Math.max(1, shared.wakeFds.length);
  const mine = sets.map((set) => set.filter(({ queue }) => queue % planes === seat));
  return openRings(frontend, mine, grants, channels, areOurs, cleanup);
}

function markOf(ring: Mapping): number {
  return Atomics.load(ring.words, RING_MARK);
}

function openJournal(path: string, ring: Mapping, slots: number): Journal {
  const state = {
    slots,
    reqProd: Atomics.load(ring.words, RING_REQ_PROD),
    rspProd: Atomics.load(ring.words, RING_RSP_PROD),
    mark: markOf(ring),
  };
  const setMark = (mark: number): void => void Atomics.store(ring.words, RING_MARK, mark);
  const journal = Journal.open(path, state, setMark);
  if (state.rspProd !== 0)
    moduleLogger("blkback").info(
      `${counted(journal.unansweredCount, "request")} in flight to carry out again`,
    );
  return journal;
}
