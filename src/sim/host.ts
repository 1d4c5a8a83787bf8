// A simulated Xen host: its directory and domains, the xenstore server, and the reaping of processes that died. It runs
// as its own process (`xentool sim`) or inside a test; the data paths never need it.
import { chmodSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { XentoolError } from "../core/errors.ts";
import { moduleLogger } from "../core/log.ts";
import { toDomid, type Domid } from "../core/types.ts";
import { XT_SIM_DOMAINS_MAX, XT_SIM_LIMITS, XT_SIM_STORE_GREF } from "../native/abi.ts";
import { check, cString, shim, type Pointer } from "../native/shim.ts";
import { attachSim, SimPlatform } from "../platform/sim.ts";
import { Xenstore } from "../xenstore/client.ts";
import { XenstoreServer, type XenstoreServerStatistics } from "../xenstore/server/server.ts";
import type { PersonalityName } from "../xenstore/server/personality.ts";
import { listenForControl, type ControlRequest, type ControlSocket } from "./control.ts";
import {
  FORMAT_VERSION,
  HOST_DESCRIPTION,
  makeDirectory,
  removeHostFiles,
  removeIfEmpty,
  type HostDirectory,
} from "./directory.ts";
import { ATTEND_AGAIN_MS, SETTLE_STEP_MS } from "./bounds.ts";
import { DEFAULT_LIMITS, type SimLimits } from "./limits.ts";
import { StoreRings } from "./store-rings.ts";
import { describeUsage, isHeld, listUsage, type UsageItem } from "./usage.ts";

const log = moduleLogger("sim");

export interface SimHostOptions {
  /** An empty directory, or one to create; by default a new one in /dev/shm. Removed when the host stops. */
  readonly dir?: string;
  /** Number of initial domains, domain 0 included. */
  readonly domains?: number;
  readonly personality?: PersonalityName;
  readonly limits?: Partial<SimLimits>;
}

export interface SimStatus {
  readonly dir: string;
  readonly pid: number;
  readonly personality: PersonalityName;
  readonly started: string;
  readonly limits: SimLimits;
  readonly domains: readonly { readonly domid: number; readonly name: string }[];
  readonly usage: readonly UsageItem[];
  /** The resources that processes hold at the moment, one line per item. */
  readonly leaks: readonly string[];
  readonly xenstore: XenstoreServerStatistics;
}

export class SimHost {
  readonly dir: string;
  readonly personality: PersonalityName;
  readonly limits: SimLimits;
  readonly server: XenstoreServer;
  /** Settles when the host has stopped, for whatever reason. */
  readonly stopped: Promise<void>;
  readonly #markStopped: () => void;
  readonly #started = new Date();
  readonly #names = new Map<number, string>();
  readonly #storePorts = new Map<number, number>();
  #handle: Pointer | undefined;
  #dom0: SimPlatform | undefined;
  #rings: StoreRings | undefined;
  #control: ControlSocket | undefined;
  /** Slots of dead processes, with their generations, that are still to be reaped. */
  readonly #unburied = new Map<number, number>();
  #attendLater: NodeJS.Timeout | undefined;
  #stopping: Promise<void> | undefined;
  #ownsFiles = false;
  #ownsDirectory: boolean;

  private constructor({ path, isNew }: HostDirectory, options: SimHostOptions) {
    this.dir = path;
    this.#ownsDirectory = isNew;
    this.personality = options.personality ?? "oxenstored";
    this.limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.server = new XenstoreServer({
      personality: this.personality,
      openRing: (domid, gfn, port) => this.#reopenRing(domid, gfn, port),
    });
    const { promise, resolve } = Promise.withResolvers<void>();
    this.stopped = promise;
    this.#markStopped = resolve;
  }

  /** Starts a host in this process. If that fails, nothing is left behind. */
  static async start(options: SimHostOptions = {}): Promise<SimHost> {
    const host = new SimHost(makeDirectory(options.dir), options);
    try {
      await host.#start(options.domains ?? 3);
    } catch (error) {
      await host.stop();
      throw error;
    }
    return host;
  }

  /** A process's view of the host as `domid`. The caller must close it. */
  platform(domid: number): SimPlatform {
    return new SimPlatform({ name: "sim", dir: this.dir, domid: toDomid(domid) });
  }

  /** Creates a domain as a toolstack does: tables, xenstore ring, directory and socket. Returns its number. */
  async createDomain(wanted?: number, name?: string): Promise<Domid> {
    const domid = toDomid(wanted ?? Math.max(-1, ...this.#names.keys()) + 1);
    if (this.#names.has(domid)) throw new XentoolError("usage", `domain ${domid} exists already`);
    if (this.#names.size >= XT_SIM_DOMAINS_MAX) throw new XentoolError("usage", "there are too many domains");
    const port = check(shim.xt_sim_domain_create(cString(this.dir), domid), `make domain ${domid}`);
    this.#names.set(domid, name ?? (domid === 0 ? "Domain-0" : `domain-${domid}`));
    this.#storePorts.set(domid, port);
    if (domid !== 0) this.#introduce(domid, port);
    await this.server.listen(join(this.dir, `dom${domid}`, "xenstored"), domid);
    if (domid !== 0) await this.#seedStore(domid, port);
    return domid;
  }

  /** Destroys a domain like `xl destroy`: none of its processes gets to clean up. */
  async destroyDomain(domid: number): Promise<void> {
    if (domid === 0 || !this.#names.delete(domid))
      throw new XentoolError(
        "usage",
        domid === 0 ? "domain 0 cannot be destroyed" : `there is no domain ${domid}`,
      );
    this.#storePorts.delete(domid);
    this.server.destroyDomain(domid);
    check(shim.xt_sim_domain_destroy(this.#host(), domid), `destroy domain ${domid}`);
    rmSync(join(this.dir, `dom${domid}`), { recursive: true, force: true });
  }

  /** Everything in use by anyone, including the host itself. */
  usage(): UsageItem[] {
    return listUsage(this.#host());
  }

  status(): SimStatus {
    return {
      dir: this.dir,
      pid: process.pid,
      personality: this.personality,
      started: this.#started.toISOString(),
      limits: this.limits,
      domains: [...this.#names].map(([domid, name]) => ({ domid, name })),
      usage: this.usage(),
      leaks: this.leaks(),
      xenstore: this.server.statistics,
    };
  }

  /** One line for everything that someone still holds at this instant. */
  leaks(): string[] {
    const items = this.usage();
    const hosts = new Set(
      items.filter((item) => item.kind === "process" && item.peer === 1).map((item) => item.slot),
    );
    const held = items.filter((item) => isHeld(item) && !hosts.has(item.slot)).map(describeUsage);
    const { connections, watches, transactions } = this.server.statistics;
    const clients = connections - (this.#rings?.count ?? 0);
    const store = { "xenstore connections": clients, watches, transactions };
    return [
      ...held,
      ...Object.entries(store).flatMap(([what, count]) => (count > 0 ? [`${count} ${what}`] : [])),
    ];
  }

  /**
   * `leaks`, once everything closed or killed has been noticed: waits until there are none, for at most `timeoutMs`.
   * For the end of tests.
   */
  async settle(timeoutMs = 5000): Promise<string[]> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const leaks = this.leaks();
      if (leaks.length === 0 || performance.now() > deadline) return leaks;
      await Bun.sleep(SETTLE_STEP_MS);
    }
  }

  /** Stops the host and removes its directory. Attached processes lose the platform. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  async #start(domains: number): Promise<void> {
    if (!Number.isInteger(domains) || domains < 1 || domains > XT_SIM_DOMAINS_MAX)
      throw new XentoolError("usage", `there can be 1 to ${XT_SIM_DOMAINS_MAX} domains, not ${domains}`);
    check(
      shim.xt_sim_host_create(cString(this.dir), limitsForShim(this.limits)),
      `make a simulated host in ${this.dir}`,
      "environment",
    );
    this.#ownsFiles = true;
    this.#describe(); // early, so that the remains of a host that died can be recognised
    this.#control = listenForControl(join(this.dir, "host.sock"), {
      request: (request) => this.#answer(request),
      detached: (slot, generation) => this.#reap(slot, generation),
      undelivered: () => this.#attend(),
    });
    // Its directory says who gets there.
    chmodSync(join(this.dir, "host.sock"), 0o666);
    await this.createDomain(0);
    this.#handle = attachSim(this.dir, 0, true);
    this.#dom0 = new SimPlatform({ name: "sim", dir: this.dir, domid: toDomid(0) }, true);
    this.#rings = new StoreRings(this.#dom0, {
      event: (domid) => this.server.ringOf(domid)?.pump(),
      undelivered: () => this.#attend(),
    });
    for (let domid = 1; domid < domains; domid++) await this.createDomain(domid);
    this.#describe();
    this.#ownsDirectory = true;
  }

  async #stop(): Promise<void> {
    if (this.#ownsFiles) rmSync(join(this.dir, HOST_DESCRIPTION), { force: true });
    this.server.close();
    await this.#rings?.close();
    this.#dom0?.close();
    clearTimeout(this.#attendLater);
    if (this.#handle !== undefined) shim.xt_platform_close(this.#handle);
    this.#handle = undefined;
    if (this.#ownsFiles) removeHostFiles(this.dir);
    if (this.#ownsDirectory) removeIfEmpty(this.dir);
    this.#control?.close();
    this.#markStopped();
  }

  #host(): Pointer {
    if (this.#handle === undefined) throw new XentoolError("usage", "the simulated host has stopped");
    return this.#handle;
  }

  /** Writes host.json, for people and for tools that find a dead host's directory. */
  #describe(): void {
    const { dir, personality, limits } = this;
    const domains = [...this.#names.keys()];
    const started = this.#started.toISOString();
    const text = JSON.stringify({
      version: FORMAT_VERSION,
      pid: process.pid,
      personality,
      domains,
      limits,
      started,
    });
    writeFileSync(join(dir, HOST_DESCRIPTION), `${text}\n`, { mode: 0o600 });
  }

  #introduce(domid: Domid, port: number): void {
    if (this.#rings === undefined) throw new XentoolError("bug", "rings before domain 0");
    this.server.createDomain(domid, this.#names.get(domid) as string);
    this.server.introduce(domid, this.#rings.open(domid, port));
  }

  #reopenRing(domid: number, gfn: number, port: number): ReturnType<StoreRings["open"]> | undefined {
    if (gfn !== XT_SIM_STORE_GREF || this.#storePorts.get(domid) !== port) return undefined;
    return this.#rings?.open(domid, port);
  }

  /** Publishes where the ring is, as libxl does, for anyone who looks in xenstore. */
  async #seedStore(domid: Domid, port: number): Promise<void> {
    const store = new Xenstore(this.server.connectDirectly(0));
    await store.write(`/local/domain/${domid}/store/ring-ref`, String(XT_SIM_STORE_GREF));
    await store.write(`/local/domain/${domid}/store/port`, String(port));
    store.close();
  }

  /** Does for the process that had `slot` what its kernel would have done. */
  #reap(slot: number, generation: number): void {
    if (slot !== 0) this.#unburied.set(slot, generation);
    this.#attend();
  }

  /**
   * Reaps dead processes and sends the events that others could not send; retries later whatever lacked a descriptor.
   */
  #attend(): void {
    if (this.#handle === undefined || this.#attendLater !== undefined) return;
    for (const [slot, generation] of this.#unburied)
      if (shim.xt_sim_reap(this.#handle, slot, generation) === 0) this.#unburied.delete(slot);
    const swept = shim.xt_sim_sweep(this.#handle);
    const undelivered = shim.xt_sim_deliver(this.#handle);
    if (this.#unburied.size === 0 && swept === 0 && undelivered === 0) return;
    this.#attendLater = setTimeout(() => {
      this.#attendLater = undefined;
      this.#attend();
    }, ATTEND_AGAIN_MS);
  }

  async #answer(request: ControlRequest): Promise<unknown> {
    log.debug("request {op}", { op: request.op });
    switch (request.op) {
      case "status":
        return this.status();
      case "createDomain": {
        const domid = await this.createDomain(request.domid, request.name);
        this.#describe();
        return { domid };
      }
      case "destroyDomain":
        await this.destroyDomain(request.domid);
        this.#describe();
        return null;
      case "stop":
        setImmediate(() => void this.stop());
        return null;
    }
  }
}

/** The limits in the shim's layout. */
function limitsForShim(limits: SimLimits): Uint32Array {
  const words = new Uint32Array(XT_SIM_LIMITS.bytes / 4);
  words[XT_SIM_LIMITS.grant_entries / 4] = limits.grantEntries;
  words[XT_SIM_LIMITS.share_pages / 4] = limits.sharePages;
  words[XT_SIM_LIMITS.maptrack / 4] = limits.maptrack;
  words[XT_SIM_LIMITS.ports / 4] = limits.ports;
  words[XT_SIM_LIMITS.handles / 4] = limits.handles;
  words[XT_SIM_LIMITS.slots / 4] = limits.slots;
  return words;
}
