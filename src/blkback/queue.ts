// The data plane of one ring, from top to bottom: fetch new requests, start those that may start, take completions,
// respond, sleep. It is synchronous: nothing here awaits, allocates or throws per request. A worker drives it with
// `run`; a test can drive it step by step with `step`.
import type { Domid, EvtchnPort } from "../core/types.ts";
import { XentoolError } from "../core/errors.ts";
import { PAGE_SIZE } from "../core/types.ts";
import type { BlockTarget, OpenTarget } from "../block/target.ts";
import type { Mapping } from "../native/memory.ts";
import { IO_FLUSH, type Reactor } from "../native/reactor.ts";
import { errnoText } from "../native/shim.ts";
import type { EventChannels, GrantTable } from "../platform/platform.ts";
import type { BlkifAbi } from "../protocol/blkif.ts";
import { BackRing, RING_LIES } from "./back-ring.ts";
import { poolBytes } from "./bounds.ts";
import { RequestCopies } from "./data/copies.ts";
import { CopyPath } from "./data/copy.ts";
import { MapPath } from "./data/map.ts";
import type { DataPath } from "./data/path.ts";
import { DONE, Executor, UNDER_WAY } from "./execute.ts";
import { IoFailures } from "./io-failures.ts";
import type { Journal } from "./journal.ts";
import { OperationTable } from "./operations.ts";
import { ADMITTED, RequestParser } from "./parse.ts";
import { QueueCounters } from "./queue-counters.ts";
import { RateLimiter } from "./rate-limiter.ts";
import {
  AFTER_FAILED_FLUSH,
  BAD_DATA_GRANT,
  IMAGE_CANNOT,
  IMAGE_FAILED,
  NOT_REFUSED,
  STATUS_OF,
} from "./refusals.ts";
import { KIND_READ, RequestTable, type DiskLimits } from "./requests.ts";
import { changesDisk, Scheduler } from "./scheduler.ts";
import { Sleeper } from "./sleeper.ts";

const EOPNOTSUPP = -95;
/** The tag of the operation that `flush` itself starts, above all tags of requests. */
const LAST_FLUSH = 0xff_ffff;
/** Minimum interval between looks at a guest that sends bad requests. */
const PENALTY_US = 1000;

export interface QueueOptions {
  readonly domid: Domid;
  readonly abi: BlkifAbi;
  /** The ring's pages, mapped. */
  readonly ring: Mapping;
  readonly channels: EventChannels;
  readonly port: EvtchnPort;
  readonly grants: GrantTable;
  /** Where the queue waits. Its owner closes it before it closes the queue. */
  readonly reactor: Reactor;
  readonly openTarget: OpenTarget;
  readonly limits: DiskLimits;
  /** Whether data is grant-copied (the default) or mapped. */
  readonly grantMode: "copy" | "map";
  /** Holds requests back when the disk has limits. Without one, it has none. */
  readonly limiter?: RateLimiter;
  /** Counters as laid out in stats.ts. */
  readonly counters: Float64Array;
  /** Records what is in flight, for a successor. */
  readonly journal?: Journal | undefined;
  /** Updates `limits`. Called before a batch is checked, so that no guest knows of a new size before we do. */
  readonly refreshLimits?: () => void;
}

export class BlockQueue {
  /** Why the queue stopped serving by itself, e.g. because the ring's indices were impossible. */
  failure: XentoolError | undefined;
  readonly limits: DiskLimits;
  readonly #ring: BackRing;
  readonly #requests: RequestTable;
  readonly #operations: OperationTable;
  readonly #scheduler: Scheduler;
  readonly #copies: RequestCopies;
  readonly #parser: RequestParser;
  readonly #path: DataPath;
  readonly #executor: Executor;
  readonly #target: BlockTarget;
  readonly #reactor: Reactor;
  readonly #counters: QueueCounters;
  readonly #failures: IoFailures;
  readonly #journal: Journal | undefined;
  readonly #sleeper: Sleeper;
  readonly #notify: () => void;
  readonly #refreshLimits: () => void;
  readonly #responses: Uint32Array;
  readonly #responseWords: number;
  /** Reads whose data reaches the guest with the next delivery. */
  readonly #finished: Uint16Array;
  #finishedCount = 0;
  #staged = 0;
  #completions = 0;
  #lastFlush: number | undefined;
  #bad = 0;
  #engineFailed = false;

  constructor(options: QueueOptions) {
    const { abi, limits, reactor, grants, domid } = options;
    this.limits = limits;
    this.#reactor = reactor;
    this.#journal = options.journal;
    this.#ring = new BackRing(options.ring, abi, options.journal?.unanswered);
    const size = this.#ring.slots;
    this.#requests = new RequestTable(size, limits.maxIndirectSegments);
    this.#operations = new OperationTable(size);
    this.#copies = new RequestCopies(grants, this.#requests.failed);
    this.#parser = new RequestParser(domid, size, this.#requests, this.#ring.requests, limits, this.#copies);
    const bytes = poolBytes(limits.maxIndirectSegments);
    this.#path =
      options.grantMode === "copy"
        ? new CopyPath(domid, this.#requests, this.#operations, this.#copies, bytes)
        : new MapPath(domid, this.#requests, this.#operations, grants, bytes / PAGE_SIZE);
    this.#target = this.#openTarget(options.openTarget);
    this.#executor = new Executor(this.#operations, this.#path, this.#target);
    const limiter = options.limiter ?? new RateLimiter(reactor);
    this.#scheduler = new Scheduler(size, this.#requests, this.#operations, this.#path, limiter);
    this.#counters = new QueueCounters(options.counters, size);
    this.#failures = new IoFailures(this.#counters, options.journal);
    this.#responses = this.#ring.responses.words;
    this.#responseWords = abi.responseBytes / 4;
    this.#finished = new Uint16Array(size);
    this.#refreshLimits = options.refreshLimits ?? (() => {});
    this.#notify = () => void options.channels.notify(options.port);
    this.#sleeper = new Sleeper(this.#ring, options.channels, options.port, options.counters);
    reactor.watch(options.channels.fd, () => this.#sleeper.takeEvents());
  }

  /** Requests taken off the ring and not yet answered. */
  get unanswered(): number {
    return this.#ring.unanswered;
  }

  /**
   * Serves until `shouldStop` returns true or the ring's indices are impossible. Operations already started are
   * completed and answered; the memory for data bounds how many there are. The rest is left to the journal.
   */
  run(shouldStop: () => boolean): void {
    for (;;) {
      const stopping = this.failure !== undefined || shouldStop();
      if (stopping && (this.#operations.activeCount === 0 || this.#engineFailed)) return;
      const fetched = stopping ? 0 : this.#fetch();
      if (!stopping) this.#start();
      const wait = this.#mayWait(fetched, stopping);
      if (wait === 0 && this.#executor.submitted === 0 && this.#operations.activeCount === 0) {
        this.#push();
        continue;
      }
      this.#complete(wait);
      this.#push();
    }
  }

  /** One round, for tests: waits only for I/O already submitted. Returns the number of requests answered. */
  step(): number {
    const before = this.#counters.answered;
    if (this.failure === undefined) this.#fetch();
    do {
      this.#start();
      this.#complete(this.#operations.activeCount > 0 || this.#scheduler.heldCount > 0 ? 1 : 0);
    } while (this.#operations.activeCount > 0 || this.#scheduler.waitingCount > 0);
    this.#push();
    return this.#counters.answered - before;
  }

  /**
   * Makes the guest's writes durable, once the guest has let go and `run` has returned. Returns 0, or the -errno of
   * this or an earlier failed flush, because then some of the data is lost.
   */
  flush(): number {
    if (this.limits.readOnly || this.#failures.flushErrno !== 0) return this.#failures.flushErrno;
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

  /** Frees the queue's own memory. The ring, target, channels and grants belong to their owners. */
  close(): void {
    this.#path.close();
    this.#copies.close();
    this.#requests.close();
    this.#ring.close();
  }

  // 1. Take new requests off the ring, decode and check them.

  #fetch(): number {
    const count = this.#ring.fetch();
    if (count === 0) return 0;
    if (count === RING_LIES) {
      const reason = `the ring's indices cannot be true: ${this.#ring.describe()}`;
      this.failure = new XentoolError("protocol", reason);
      return 0;
    }
    this.#counters.fetched(count);
    this.#refreshLimits();
    const parser = this.#parser;
    parser.admit(count, this.#reactor.nowMs);
    this.#bad += parser.bad;
    this.#counters.indirect(parser.indirect);
    this.#note(count);
    for (let slot = 0; slot < count; slot++) {
      const row = parser.rows[slot];
      const verdict = parser.verdicts[slot];
      if (verdict === ADMITTED) this.#scheduler.add(row);
      else this.#respond(row, verdict);
    }
    return count;
  }

  /** Journals all `count` requests of the batch before any of them starts or is answered. */
  #note(count: number): void {
    const journal = this.#journal;
    if (journal === undefined) return;
    const { rows } = this.#parser;
    for (let slot = 0; slot < count; slot++) journal.take(rows[slot], slot, this.#ring.requests.words);
    journal.commit(count);
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

  #complete(wait: number): void {
    const reactor = this.#reactor;
    const { submitted } = this.#executor;
    this.#executor.submitted = this.#completions = 0;
    const error = reactor.wait(wait, this.#sleeper.timeoutUs);
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
    this.#operations.close(op, changesDisk(this.#operations.kind[op]));
  }

  // 4. Respond: one push and at most one notification for everything staged.

  #respond(row: number, reason: number): void {
    const requests = this.#requests;
    const words = this.#responses;
    this.#journal?.answer(row, this.#staged);
    const at = this.#staged++ * this.#responseWords;
    words[at] = requests.idLow[row];
    words[at + 1] = requests.idHigh[row];
    words[at + 2] = requests.echo[row] | ((STATUS_OF[reason] & 0xffff) << 16);
    this.#counters.answer(requests, row, reason, this.#reactor.nowMs);
    requests.release(row);
  }

  #push(): void {
    const count = this.#staged;
    if (count === 0) return;
    this.#staged = 0;
    const notify = this.#ring.push(count);
    this.#journal?.pushed(count);
    this.#counters.pushed(count, notify, this.#copies.copied, this.#scheduler.merged, this.#reactor.nowMs);
    if (notify) this.#notify();
  }

  // 5. Sleep only when there is nothing to do, and only after asking to be notified of the next request.

  #mayWait(fetched: number, stopping: boolean): number {
    if (this.#staged > 0 && this.#executor.submitted === 0) return 0;
    const active = this.#operations.activeCount;
    if (stopping || (active === 0 && this.#scheduler.mustPass)) return active > 0 ? 1 : 0;
    const bad = this.#bad;
    this.#bad = 0;
    const wait = this.#sleeper.mayWait(
      fetched,
      this.#executor.submitted,
      this.#operations.activeCount,
      bad > 0 ? PENALTY_US : 0,
      this.#reactor.nowMs,
    );
    return wait ? 1 : 0;
  }
}
