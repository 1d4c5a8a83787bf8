// What `xentool top` shows: the disks of this host from their statistics, and the xenstore rings of all domains from
// their pages. xenstored is asked for names only, and never waited for: it may be what is wrong.
import { activityBetween, statsKey, type Activity } from "../../src/blkback/stats/activity.ts";
import { listDevices } from "../../src/blkback/device/device-list.ts";
import type { DiskRates } from "../../src/blkback/limits/rates.ts";
import { readAllStats, statsDir, type DeviceStats } from "../../src/blkback/stats/stats.ts";
import { endsWithin } from "../../src/core/deadline.ts";
import { describeError } from "../../src/core/errors.ts";
import { toDomid } from "../../src/core/types.ts";
import type { Platform } from "../../src/platform/platform.ts";
import { vdevName } from "../../src/protocol/blkif.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { listDomains } from "../../src/xenstore/domains.ts";
import { openTransport } from "../../src/xenstore/open.ts";
import { RingMeter, type RingActivity } from "../../src/xsring/ring-meter.ts";
import { openDomainRing, type OpenRingPage } from "../../src/xsring/source.ts";

/** How many past intervals the trends show. */
const HISTORY = 60;
/** A limit on opening the way to xenstored, which does not involve it. */
const OPEN_MS = 5000;

export interface DiskRow extends Activity {
  readonly domid: number;
  readonly vdev: string;
  /** The backend's, or "dead" when its server is. */
  readonly state: string;
  readonly queue: number;
  readonly waiting: number;
  readonly held: number;
  readonly limits: DiskRates;
  /** Null while it is not known. */
  readonly source: string | null;
  /** Requests a second, oldest first. */
  readonly history: readonly number[];
}

export interface RingRow extends RingActivity {
  readonly domid: number;
  readonly name: string | null;
  readonly history: readonly number[];
}

export interface TopView {
  readonly time: Date;
  readonly intervalMs: number;
  readonly disks: readonly DiskRow[];
  readonly rings: readonly RingRow[];
  /** Why rings are missing, or names may be old. */
  readonly notes: readonly string[];
}

interface FollowedRing {
  readonly ring: OpenRingPage;
  readonly meter: RingMeter;
}

export class TopModel implements Disposable {
  readonly #platform: Platform;
  readonly #statsDir: string;
  #xenstore: Xenstore | undefined;
  #refreshing: Promise<void> | undefined;
  #isClosed = false;
  #xenstoreTrouble: string | undefined;
  #ringTrouble: string | undefined;
  #domains: ReadonlyMap<number, string | null> = new Map();
  #sources: ReadonlyMap<string, string> = new Map();
  readonly #rings = new Map<number, FollowedRing>();
  readonly #history = new Map<string, number[]>();
  #stats: ReadonlyMap<string, DeviceStats>;
  #sampledAtMs = performance.now();

  constructor(platform: Platform) {
    this.#platform = platform;
    this.#statsDir = statsDir(platform.descriptor);
    this.#stats = this.#readStats();
  }

  /** Learns names, and which domains there are. Never throws, and returns even if xenstored does not answer. */
  async refresh(patienceMs: number): Promise<void> {
    this.#refreshing ??= this.#ask()
      .then(() => (this.#xenstoreTrouble = undefined))
      .catch((error: unknown) => (this.#xenstoreTrouble = `xenstored: ${describeError(error)}`))
      .then(() => (this.#refreshing = undefined));
    if (!(await endsWithin(patienceMs, this.#refreshing)))
      this.#xenstoreTrouble = "xenstored has not answered yet: domains and names may be old";
    if (!this.#isClosed) this.#followRings();
  }

  /** Looks at every ring; called many times in an interval. */
  look(): void {
    const now = performance.now();
    for (const { meter } of this.#rings.values()) meter.look(now);
  }

  /** What has happened since the last call. */
  sample(): TopView {
    const nowMs = performance.now();
    const intervalMs = nowMs - this.#sampledAtMs;
    this.#sampledAtMs = nowMs;
    const before = this.#stats;
    this.#stats = this.#readStats();
    const disks = [...this.#stats].map(([key, stats]) => this.#diskRow(before.get(key), stats, intervalMs));
    const rings = [...this.#rings].map(([domid, { meter }]) => this.#ringRow(domid, meter.take(nowMs)));
    const keys = new Set([...this.#stats.keys(), ...[...this.#rings.keys()].map(String)]);
    for (const key of this.#history.keys()) if (!keys.has(key)) this.#history.delete(key);
    const notes = [this.#xenstoreTrouble, this.#ringTrouble].filter((note) => note !== undefined);
    return { time: new Date(), intervalMs, disks, rings, notes };
  }

  [Symbol.dispose](): void {
    this.#isClosed = true;
    for (const { ring } of this.#rings.values()) ring.close();
    this.#rings.clear();
    this.#xenstore?.close();
  }

  #readStats(): ReadonlyMap<string, DeviceStats> {
    return new Map(readAllStats(this.#statsDir).map((it) => [statsKey(it), it]));
  }

  async #ask(): Promise<void> {
    if (this.#xenstore?.failure !== undefined) this.#xenstore = undefined;
    // Not `Xenstore.connect`, which waits for an answer: closing this one ends whatever waits.
    this.#xenstore ??= new Xenstore(await openTransport(this.#platform.xenstore, OPEN_MS));
    const xenstore = this.#xenstore;
    if (this.#isClosed) return xenstore.close();
    this.#domains = new Map((await listDomains(xenstore)).map(({ domid, name }) => [domid, name]));
    const devices = await listDevices(xenstore, this.#platform.domid, [...this.#stats.values()]);
    this.#sources = new Map(devices.map((it) => [`${it.frontend}/${it.devid}`, it.params]));
  }

  /** A domain that is gone is let go of, because a mapping keeps it from disappearing. */
  #followRings(): void {
    const wanted = [...this.#domains.keys()].filter((domid) => domid !== this.#platform.domid);
    for (const [domid, { ring }] of this.#rings) {
      if (wanted.includes(domid)) continue;
      ring.close();
      this.#rings.delete(domid);
    }
    this.#ringTrouble = undefined;
    for (const domid of wanted) {
      if (this.#rings.has(domid)) continue;
      try {
        const ring = openDomainRing(this.#platform, toDomid(domid), "r");
        this.#rings.set(domid, { ring, meter: new RingMeter(ring.page, performance.now()) });
      } catch (error) {
        this.#ringTrouble = describeError(error);
      }
    }
  }

  #diskRow(before: DeviceStats | undefined, stats: DeviceStats, intervalMs: number): DiskRow {
    const activity = activityBetween(before, stats, intervalMs);
    const { reads, writes, flushes, discards } = activity;
    return {
      domid: stats.domid,
      vdev: vdevName(stats.devid),
      ...activity,
      state: stats.alive ? stats.state : "dead",
      queue: stats.inFlight,
      waiting: stats.waiting,
      held: stats.held,
      limits: stats.limits,
      source: this.#sources.get(`${stats.domid}/${stats.devid}`) ?? null,
      history: this.#remember(statsKey(stats), reads + writes + flushes + discards),
    };
  }

  #ringRow(domid: number, activity: RingActivity): RingRow {
    const history = this.#remember(String(domid), activity.requests);
    return { domid, name: this.#domains.get(domid) ?? null, ...activity, history };
  }

  #remember(key: string, value: number): readonly number[] {
    const all = [...(this.#history.get(key) ?? []), value].slice(-HISTORY);
    this.#history.set(key, all);
    return all;
  }
}
