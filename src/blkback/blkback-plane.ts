// The plane of one connected disk: opens what it needs in its own thread, serves the rings until told to stop, and
// releases everything.
import { openFiltered } from "../block/filters/catalogue.ts";
import type { WriteLog } from "../block/targets/nbd/write-log.ts";
import { openTarget, type OpenedTarget } from "../block/targets/open.ts";
import { configureLogging, moduleLogger } from "../core/log.ts";
import { PAGE_SIZE } from "../core/types.ts";
import { enterPlaneJail } from "../native/jail.ts";
import type { Mapping } from "../native/memory.ts";
import { errnoText } from "../native/shim.ts";
import { Reactor } from "../native/reactor.ts";
import type { CarryOut } from "../plane/answer.ts";
import { failureOf } from "../plane/protocol.ts";
import { openPlatform } from "../platform/open.ts";
import { ABI_X86_32, ABI_X86_64, SECTOR_SIZE } from "../protocol/blkif.ts";
import { RING_MARK, RING_REQ_PROD, RING_RSP_PROD, ringSlots } from "../protocol/ring.ts";
import { BlkbackControl } from "./blkback-control.ts";
import type { BlkbackOrder } from "./blkback-orders.ts";
import { CLOSING_PATIENCE_MS, MAX_WATCHES, reactorDepth, SILENT_PATIENCE_MS } from "./bounds.ts";
import { Journal, journalPath, mayBelong } from "./journal.ts";
import { openRings, type OpenRing } from "./open-rings.ts";
import { BackDataPlane } from "./data-plane.ts";
import { RateLimiter } from "./rate-limiter.ts";
import { openWriteLog, ServerLine } from "./server-line.ts";
import { StatsPage } from "./stats.ts";
import { counted } from "../core/counted.ts";

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
  const areOurs = (opened: readonly OpenRing[]): boolean =>
    opened.every(({ ring }, queue) => mayBelong(journalPath(order.statsPath, queue), markOf(ring)));
  const rings = openRings(order.frontend, order.sets, grants, channels, areOurs, cleanup);
  const stats = cleanup.adopt(StatsPage.attach(order.statsPath), (it) => it.close());
  const disk = { ...order.disk };
  // Closed in the order they were opened: the reactor first, because its operations in flight use the plane's memory.
  const closing: { close(): void }[] = [];
  cleanup.defer(() => closing.forEach((it) => it.close()));
  const slots = ringSlots(rings[0].ring.sizeBytes / PAGE_SIZE, abi.slotBytes);
  const depth = reactorDepth(rings.length * slots);
  const reactor = Reactor.open(depth, order.engine, MAX_WATCHES);
  closing.push(reactor);
  const { name: device } = order;
  const context = { reactor, device, sizeBytes: () => disk.sectors512 * SECTOR_SIZE };
  const used = rings.filter(({ ring }) => Atomics.load(ring.words, RING_RSP_PROD) !== 0);
  const lanes = rings.map(({ ring, port }, queue) => {
    const path = journalPath(order.statsPath, queue);
    const journal = cleanup.adopt(openJournal(path, ring, slots), (it) => it.close());
    return { ring, port, journal, counters: stats.section(queue) };
  });
  const limiter = new RateLimiter(reactor, control.rates);
  const server = new ServerLine(control, report, stats.counters);
  let image: OpenedTarget | undefined;
  let isOver = false;
  const plane = new BackDataPlane({
    domid: order.frontend,
    abi,
    lanes,
    channels,
    grants,
    reactor,
    openTarget: (onEnd) =>
      openFiltered(
        order.filters,
        (innerEnd) => {
          const { holdMs } = order;
          const isTakenOver = used.length > 0;
          const openLog = (name: string): WriteLog =>
            openWriteLog(order.statsPath, `${order.deviceId} ${name}`, isTakenOver);
          const needs = { holdMs, openLog, isTakenOver, ...server.needs };
          const opened = openTarget(order.image, reactor, depth, innerEnd, needs);
          closing.unshift({ close: () => opened.close(isOver) });
          image = opened;
          return opened.target;
        },
        onEnd,
        context,
      ),
    disk,
    grantMode: order.grantMode,
    limiter,
    refreshSize: () => {
      disk.sectors512 = control.sectors512;
    },
  });
  closing.push(plane);
  if (order.jail !== undefined) enterPlaneJail(order.jail);
  moduleLogger("blkback").info(
    `${counted(rings.length, "queue")} of ${counted(rings[0].ring.sizeBytes / PAGE_SIZE, "ring page")}, ${abi.protocol}`,
  );
  report({ type: "connected" });
  // The former server may have been killed between a response and its event.
  for (const { port } of used) channels.notify(port);
  reactor.watch(control.wakeFd, () => {
    control.drain();
    limiter.change(control.rates);
    server.take();
    if (control.leaves) image?.remote?.limitEnding(CLOSING_PATIENCE_MS);
    else if (control.stopped) image?.remote?.limitHold(CLOSING_PATIENCE_MS);
    if (control.hurries) image?.remote?.limitSilence(SILENT_PATIENCE_MS);
  });
  plane.run(
    () => control.stopped,
    () =>
      (control.leaves && image?.remote?.isStuck === true) ||
      (plane.failure !== undefined && image?.remote?.isServing === false),
  );
  const { failure } = plane;
  const closes = failure === undefined ? !control.leaves : failure.kind === "protocol";
  isOver = closes;
  if (closes) image?.remote?.limitHold(CLOSING_PATIENCE_MS);
  const errno = closes ? plane.flush() : 0;
  return { failure: failure && failureOf(failure), lost: errno === 0 ? undefined : errnoText(errno) };
};

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
