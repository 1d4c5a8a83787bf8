// The data plane of one disk, with all its queues (a lane each) or some, from top to bottom: take new requests off
// their rings, start those that may start, take completions, respond, sleep. It is synchronous: nothing here awaits,
// allocates or throws per request. A worker drives it with `run`; a test can drive it step by step with `step`.
import type { Domid } from "../../core/types.ts";
import { XentoolError } from "../../core/errors.ts";
import type { BlockTarget, OpenTarget } from "../../block/target.ts";
import { IO_FLUSH, type Reactor } from "../../native/reactor.ts";
import { errnoText } from "../../native/shim.ts";
import type { EventChannels, GrantTable } from "../../platform/platform.ts";
import type { BlkifAbi } from "../../protocol/blkif.ts";
import { BackRing, RING_LIES } from "./back-ring.ts";
import { RequestCopies } from "./data/copies.ts";
import { openDataPath } from "./data/open.ts";
import type { DataPath, GrantMode } from "./data/path.ts";
import { DONE, Executor, UNDER_WAY } from "./execute.ts";
import { DiskCounters } from "./disk-counters.ts";
import { IoFailures } from "./io-failures.ts";
import { Lane, type LaneOptions } from "./lane.ts";
import { OperationTable } from "./operations.ts";
import { ADMITTED } from "./parse.ts";
import { RateLimiter } from "../limits/rate-limiter.ts";
import { AFTER_FAILED_FLUSH, BAD_DATA_GRANT, IMAGE_CANNOT, IMAGE_FAILED, NOT_REFUSED } from "./refusals.ts";
import { KIND_READ, RequestTable, type OfferedDisk } from "./requests.ts";
import { Scheduler } from "./scheduler.ts";
import { SharedDisk } from "./shared-disk.ts";
import { Sleeper } from "./sleeper.ts";

const EOPNOTSUPP = -95;
/** The tag of the operation that `flush` itself starts, above all tags of requests. */
const LAST_FLUSH = 0xff_ffff;
/** After this many rounds in which every request was answered at once, we look at orders, timers and the clock. */
const MAX_BLIND_ROUNDS = 16;
/** Minimum interval between looks at a guest that sends bad requests. */
const PENALTY_US = 1000;

export interface BackDataPlaneOptions {
  readonly domid: Domid;
  readonly abi: BlkifAbi;
  /** At least one, all with rings of the same size. The first one's counters are the plane's, too. */
  readonly lanes: readonly LaneOptions[];
  /** Of the lanes' ports, and no others. */
  readonly channels: EventChannels;
  readonly grants: GrantTable;
  /** Where the data plane waits. Its owner closes it before it closes the data plane. */
  readonly reactor: Reactor;
  readonly openTarget: OpenTarget;
  readonly disk: OfferedDisk;
  /** How data crosses. */
  readonly grantMode: GrantMode;
  /** Holds requests back when the disk has limits. Without one, it has none. */
  readonly limiter?: RateLimiter;
  /** What it has in common with the disk's other planes. Without it, there are none. */
  readonly shared?: SharedDisk | undefined;
  /**
   * Updates `disk` and `limiter`. Called when a batch has been taken, before it is checked, so that no guest knows of a
   * new size before we do, and no request that came after a new limit passes by the old one.
   */
  readonly refresh?: () => void;
}

export class BackDataPlane {
  /** Why the data plane stopped serving by itself, e.g. because the ring's indices were impossible. */
  failure: XentoolError | undefined;
  readonly disk: OfferedDisk;
  readonly #lanes: readonly Lane[];
  readonly #requests: RequestTable;
  readonly #operations: OperationTable;
  readonly #scheduler: Scheduler;
  readonly #copies: RequestCopies;
  readonly #path: DataPath;
  readonly #executor: Executor;
  readonly #target: BlockTarget;
  readonly #reactor: Reactor;
  readonly #counters: DiskCounters;
  readonly #failures: IoFailures;
  readonly #sleeper: Sleeper;
  readonly #refresh: () => void;
  /** Reads whose data reaches the guest with the next delivery. */
  readonly #finished: Uint16Array;
  #finishedCount = 0;
  /** Responses that the next push publishes. */
  #staged = 0;
  #completions = 0;
  #lastFlush: number | undefined;
  #bad = 0;
  /** Rounds in a row that neither started nor waited for anything. */
  #blindRounds = 0;
  #engineFailed = false;

  constructor(options: BackDataPlaneOptions) {
    const { abi, disk, reactor, grants, domid, channels, lanes } = options;
    this.disk = disk;
    this.#reactor = reactor;
    const rings = lanes.map(({ ring, journal }) => new BackRing(ring, abi, journal?.unanswered));
    const [{ slots }] = rings;
    const size = slots * lanes.length;
    this.#requests = new RequestTable(slots, disk.maxIndirectSegments, lanes.length);
    this.#operations = new OperationTable(size);
    this.#copies = new RequestCopies(grants, this.#requests.failed);
    const requests = this.#requests;
    const { path, segments } = openDataPath(options.grantMode, {
      domid,
      requests,
      operations: this.#operations,
      copies: this.#copies,
      grants,
      clock: reactor,
      disk,
    });
    this.#path = path;
    const ground = { domid, abi, channels, requests, segments, disk };
    this.#lanes = rings.map((ring, index) => new Lane(ring, lanes[index], ground, index));
    this.#target = this.#openTarget(options.openTarget);
    this.#executor = new Executor(this.#operations, this.#path, this.#target);
    const limiter = options.limiter ?? new RateLimiter(reactor);
    const shared = options.shared ?? SharedDisk.alone();
    this.#scheduler = new Scheduler(size, requests, this.#operations, this.#path, limiter, shared);
    const [{ counters }] = lanes;
    this.#counters = new DiskCounters(counters, lanes.length);
    const journals = lanes.flatMap(({ journal }) => journal ?? []);
    this.#failures = new IoFailures(this.#counters, journals, shared);
    this.#finished = new Uint16Array(size);
    this.#refresh = options.refresh ?? (() => {});
    this.#sleeper = new Sleeper(this.#lanes, channels, counters);
    reactor.watch(channels.fd, () => this.#sleeper.takeEvents());
  }

  /** Requests taken off the rings and not yet answered. */
  get unanswered(): number {
    return this.#lanes.reduce((sum, { ring }) => sum + ring.unanswered, 0);
  }

  /**
   * Serves until `shouldStop` returns true or a ring's indices are impossible. Operations already started are
   * completed and answered; the memory for data bounds how many there are. The rest is left to the journal, and so are
   * they when `isStuck`: the image's server is not there to complete them, and a successor will have it do that.
   */
  run(shouldStop: () => boolean, isStuck: () => boolean = () => false): void {
    for (;;) {
      const stopping = this.failure !== undefined || shouldStop();
      if (stopping && (this.#operations.activeCount === 0 || this.#engineFailed || isStuck())) return;
      const taken = stopping ? 0 : this.#take();
      if (!stopping) this.#start();
      const wait = this.#mayWait(taken, stopping);
      if (wait > 0 || this.#executor.submitted > 0 || this.#operations.activeCount > 0) this.#complete(wait);
      else if (++this.#blindRounds > MAX_BLIND_ROUNDS) this.#lookUp();
      this.#push();
    }
  }

  /** One round, for tests: waits only for I/O already submitted. Returns the number of requests answered. */
  step(): number {
    const answered = (): number => this.#lanes.reduce((sum, lane) => sum + lane.answered, 0);
    const before = answered();
    if (this.failure === undefined) this.#take();
    do {
      this.#start();
      this.#complete(this.#operations.activeCount > 0 || this.#scheduler.heldCount > 0 ? 1 : 0);
    } while (this.#operations.activeCount > 0 || this.#scheduler.waitingCount > 0);
    this.#push();
    return answered() - before;
  }

  /**
   * Makes the guest's writes durable, once the guest has let go and `run` has returned. Returns 0, or the -errno of
   * this or an earlier failed flush, because then some of the data is lost.
   */
  flush(): number {
    if (this.disk.readOnly || this.#failures.flushErrno !== 0) return this.#failures.flushErrno;
    this.#target.start(IO_FLUSH, LAST_FLUSH, 0, 0, 0);
    for (this.#lastFlush = undefined; this.#lastFlush === undefined;) {
      const error = this.#reactor.wait(1, -1);
      if (error < 0) this.#lastFlush = error;
      else this.#reactor.dispatch();
    }
    if (this.#lastFlush < 0 && this.#lastFlush !== EOPNOTSUPP)
      this.#failures.lastFlushFailed(this.#lastFlush);
    return this.#failures.flushErrno;
  }

  /** Frees the data plane's own memory. The rings, target, channels and grants belong to their owners. */
  close(): void {
    this.#path.close();
    this.#copies.close();
    this.#requests.close();
    for (const lane of this.#lanes) lane.close();
  }

  // 1. Take new requests off the rings. What is refused is answered.

  #take(): number {
    const lanes = this.#lanes;
    let taken = 0;
    for (let index = 0; index < lanes.length; index++) taken += this.#takeFrom(lanes[index]);
    return taken;
  }

  #takeFrom(lane: Lane): number {
    const count = lane.ring.fetch();
    if (count === 0) return 0;
    if (count === RING_LIES) {
      const which = lane.queue === undefined ? "the ring's" : `queue ${lane.queue}: the ring's`;
      const reason = `${which} indices cannot be true: ${lane.ring.describe()}`;
      this.failure = new XentoolError("protocol", reason);
      return 0;
    }
    this.#refresh();
    lane.admit(count, this.#reactor.nowMs);
    const { rows, verdicts, bad } = lane.parser;
    this.#bad += bad;
    for (let slot = 0; slot < count; slot++) {
      const row = rows[slot];
      if (verdicts[slot] === ADMITTED) this.#scheduler.add(row);
      else this.#respond(row, verdicts[slot]);
    }
    return count;
  }

  // 2. Start what may start: bring in the data of writes, then submit the operations to the target.

  #start(): void {
    const scheduler = this.#scheduler;
    if (scheduler.waitingCount === 0) return;
    scheduler.pass();
    this.#counters.waiting(scheduler.waitingCount, scheduler.heldCount);
    if (scheduler.startedCount === 0) return;
    this.#path.gather(scheduler.started, scheduler.startedCount);
    for (let i = 0; i < scheduler.startedCount; i++) {
      const op = scheduler.started[i];
      if (this.#failures.forbids(this.#operations.kind[op])) this.#answer(op, AFTER_FAILED_FLUSH);
      else if (this.#hasFailedRequest(op)) this.#giveUp(op, BAD_DATA_GRANT);
      else this.#executor.submit(op);
    }
  }

  #hasFailedRequest(op: number): boolean {
    const { failed, next } = this.#requests;
    for (let row = this.#operations.first[op]; row >= 0; row = next[row]) if (failed[row] !== 0) return true;
    return false;
  }

  // 3. Take completions; deliver the data of reads to the guest, a whole batch at once.

  #openTarget(open: OpenTarget): BlockTarget {
    return open((op, result) => {
      if (op === LAST_FLUSH) {
        this.#lastFlush = result;
        return;
      }
      this.#completions++;
      this.#completeOne(op, result);
    });
  }

  /**
   * A guest whose every request is answered at once must not keep us from orders, timers and the clock. If they were
   * bad, it has to wait, too.
   */
  #lookUp(): void {
    const penaltyUs = this.#bad > 0 ? PENALTY_US : 0;
    this.#bad = 0;
    this.#complete(1, penaltyUs);
  }

  #complete(wait: number, timeoutUs = this.#sleeper.timeoutUs): void {
    const reactor = this.#reactor;
    const { submitted } = this.#executor;
    this.#executor.submitted = this.#completions = this.#blindRounds = 0;
    const error = reactor.wait(wait, timeoutUs, this.#sleeper.isPatient);
    if (error < 0) {
      this.failure ??= new XentoolError("environment", `the I/O engine failed: ${errnoText(error)}`);
      this.#engineFailed = true;
      return;
    }
    reactor.dispatch();
    this.#sleeper.completed(submitted, this.#completions, wait, reactor.nowMs);
    this.#deliver();
  }

  #completeOne(op: number, result: number): void {
    const kind = this.#operations.kind[op];
    const outcome = this.#executor.advance(op, result);
    if (outcome === UNDER_WAY) return;
    if (outcome !== DONE) this.#fail(op, outcome);
    else if (kind === KIND_READ) {
      this.#finished[this.#finishedCount++] = op;
    } else {
      this.#answer(op, NOT_REFUSED);
    }
  }

  #deliver(): void {
    if (this.#finishedCount === 0) return;
    this.#path.scatter(this.#finished, this.#finishedCount);
    for (let i = 0; i < this.#finishedCount; i++) this.#answer(this.#finished[i], NOT_REFUSED);
    this.#finishedCount = 0;
  }

  /**
   * The target failed `op`. If it was merged, its requests are retried alone, and only those that fail then are
   * counted.
   */
  #fail(op: number, errno: number): void {
    const { kind, start, end, first } = this.#operations;
    const of = kind[op];
    if (errno === EOPNOTSUPP && of !== KIND_READ) {
      this.#giveUp(op, IMAGE_CANNOT);
      return;
    }
    if (this.#executor.isFlushing(op)) this.#failures.flushFailed(errno);
    else if (this.#requests.next[first[op]] === -1) {
      const from = start[op];
      this.#failures.failed(of, from, end[op] - from, errno, this.#reactor.nowMs);
    }
    this.#giveUp(op, IMAGE_FAILED);
  }

  /** Ends a failed operation: a single request is answered, and merged ones are put back to be tried one by one. */
  #giveUp(op: number, reason: number): void {
    const operations = this.#operations;
    const first = operations.first[op];
    if (this.#requests.next[first] === -1) {
      this.#answer(op, reason);
      return;
    }
    this.#end(op);
    for (let row = first; row >= 0;) {
      const next = this.#requests.next[row];
      this.#requests.failed[row] = 0;
      this.#scheduler.putBack(row);
      row = next;
    }
  }

  /** Ends `op` and stages its responses. Its pages are given back before the responses are published. */
  #answer(op: number, reason: number): void {
    const requests = this.#requests;
    let row = this.#operations.first[op];
    this.#end(op);
    while (row >= 0) {
      const next = requests.next[row];
      this.#respond(row, requests.failed[row] === 0 ? reason : BAD_DATA_GRANT);
      row = next;
    }
  }

  #end(op: number): void {
    this.#path.release(op);
    this.#scheduler.end(op);
  }

  // 4. Respond: for each ring one push and at most one notification for everything staged.

  #respond(row: number, reason: number): void {
    this.#staged++;
    this.#lanes[this.#requests.laneOf(row)].respond(row, reason, this.#reactor.nowMs);
  }

  #push(): void {
    if (this.#staged === 0) return;
    this.#staged = 0;
    const lanes = this.#lanes;
    for (let index = 0; index < lanes.length; index++) lanes[index].push();
    this.#counters.pushed(this.#copies.copied, this.#scheduler.merged, this.#reactor.nowMs);
  }

  // 5. Sleep only when there is nothing to do, and only after asking to be notified of the next request.

  #mayWait(taken: number, stopping: boolean): number {
    if (this.#staged > 0 && this.#executor.submitted === 0) return 0;
    const active = this.#operations.activeCount;
    if (stopping || (active === 0 && this.#scheduler.mustPass)) return active > 0 ? 1 : 0;
    const bad = this.#bad;
    this.#bad = 0;
    const wait = this.#sleeper.mayWait(
      taken,
      this.#executor.submitted,
      this.#operations.activeCount,
      bad > 0 ? PENALTY_US : 0,
      this.#reactor.nowMs,
    );
    return wait ? this.#sleeper.wanted : 0;
  }
}
