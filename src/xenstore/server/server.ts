// The xenstore server: one tree, its watches, and the domains connected by socket, by ring page or from within this
// process. Everything is served on the calling thread; a request never waits for another.
import { assert, XentoolError } from "../../core/errors.ts";
import { isWithin, type XsPacket } from "../../protocol/xs-wire.ts";
import { COLLECT_BYTES } from "../bounds.ts";
import type { XenstoreTransport } from "../transport.ts";
import { Connection, type Channel, type ConnectionOwner } from "./connection.ts";
import { connectDirectly } from "./direct-channel.ts";
import { handleRequest, repeatRequest } from "./dispatcher.ts";
import { Domain } from "./domain.ts";
import { PERSONALITIES, type Personality, type PersonalityName } from "./personality.ts";
import type { Permissions } from "./permissions.ts";
import { fail, type Quotas } from "./quota.ts";
import type { ServerState } from "./request.ts";
import { RingChannel, type Ring } from "./ring-channel.ts";
import { seedDomain, seedServer } from "./seed.ts";
import { Snapshots } from "./snapshots.ts";
import { listenOnSocket, type SocketListener } from "./socket-listener.ts";
import { StoreTree, type Removed } from "./store.ts";
import type { Job } from "./turns.ts";
import { WatchRegistry } from "./watch.ts";

const INTRODUCE_DOMAIN = "@introduceDomain";
const RELEASE_DOMAIN = "@releaseDomain";

export interface XenstoreServerOptions {
  readonly personality: PersonalityName;
  /** Overrides some of the personality's limits for unprivileged domains. */
  readonly quotas?: Partial<Quotas>;
  /**
   * Opens the ring that an INTRODUCE request names: the page `gfn` of `domid` and its event channel `port`. Returns
   * undefined if there is no such page or port. Without this function, domains are introduced without a ring.
   */
  readonly openRing?: (domid: number, gfn: number, port: number) => Ring | undefined;
  /** Returns the milliseconds of a monotonic clock. */
  readonly now?: () => number;
}

/** Current numbers. Once every client is gone, everything except nodes and domains is zero. */
export interface XenstoreServerStatistics {
  readonly domains: number;
  readonly connections: number;
  readonly watches: number;
  readonly transactions: number;
  readonly nodes: number;
}

export class XenstoreServer implements ServerState, ConnectionOwner {
  readonly personality: Personality;
  readonly watches = new WatchRegistry();
  readonly snapshots = new Snapshots();
  readonly domains = new Map<number, Domain>();
  readonly now: () => number;
  tree = StoreTree.empty();
  quotas: Quotas;
  defaultFeatures: number | undefined;
  /** Payload bytes of the requests since the last collection. */
  #payloadBytes = 0;
  readonly #openRing: XenstoreServerOptions["openRing"];
  readonly #listeners = new Map<number, SocketListener[]>();
  readonly #rings = new Map<number, RingChannel>();
  readonly #specialPermissions = new Map<string, Permissions>();

  constructor(options: XenstoreServerOptions) {
    this.personality = PERSONALITIES[options.personality];
    this.quotas = { ...this.personality.quotas, ...options.quotas };
    this.now = options.now ?? (() => performance.now());
    this.#openRing = options.openRing;
    this.#specialPermissions.set(INTRODUCE_DOMAIN, [{ domid: 0, access: "none" }]);
    const heardBy = this.personality.releaseDomainForAll ? "read" : "none";
    this.#specialPermissions.set(RELEASE_DOMAIN, [{ domid: 0, access: heardBy }]);
    seedServer(this.tree);
    this.createDomain(0, "Domain-0");
  }

  get statistics(): XenstoreServerStatistics {
    const domains = [...this.domains.values()];
    return {
      domains: domains.length,
      connections: domains.reduce((sum, domain) => sum + domain.connections.size, 0),
      watches: this.watches.count,
      transactions: domains.reduce((sum, domain) => sum + domain.transactionCount, 0),
      nodes: this.tree.size,
    };
  }

  /** Creates a domain as a toolstack does: first its directory with libxl's permissions, then its introduction. */
  createDomain(domid: number, name: string): void {
    for (const path of seedDomain(this.tree, domid, name))
      this.watches.fire({ path, oldPermissions: undefined, removed: undefined }, this.tree);
    this.introduce(domid);
  }

  /** Listens at the socket `path` for clients acting as `domid`. Fails with `environment` if it cannot. */
  async listen(path: string, domid: number): Promise<void> {
    const listener = listenOnSocket(path, (channel) => this.#connect(domid, channel));
    this.#listeners.set(domid, [...(this.#listeners.get(domid) ?? []), listener]);
    this.#domain(domid);
  }

  /** A transport within this process for a client acting as `domid`. */
  connectDirectly(domid: number): XenstoreTransport {
    this.#domain(domid);
    return connectDirectly((channel) => {
      const connection = this.#connect(domid, channel);
      if (connection === undefined)
        throw new XentoolError("usage", `domain ${domid} has too many connections`);
      return connection;
    });
  }

  /**
   * Introduces a domain, with or without a ring, and reports it through @introduceDomain. The server owns the ring from
   * now on: call `pump` on the returned channel for each event on its port.
   */
  introduce(domid: number): undefined;
  introduce(domid: number, ring: Ring): RingChannel;
  introduce(domid: number, ring?: Ring): RingChannel | undefined {
    const domain = this.#domain(domid);
    const isNew = !domain.introduced;
    domain.introduced = true;
    const channel = ring === undefined ? undefined : this.#attachRing(domain, ring);
    if (isNew) this.#fireSpecial(INTRODUCE_DOMAIN, domid);
    return channel;
  }

  /** A domain is gone for good: does what `release` does and also closes its sockets. */
  destroyDomain(domid: number): void {
    for (const listener of this.#listeners.get(domid) ?? []) listener.close();
    this.#listeners.delete(domid);
    this.release(domid);
  }

  /**
   * A domain is gone, along with its connections, ring and nodes; this is reported through @releaseDomain. Its sockets
   * refuse everyone until it is introduced again, which a toolstack may do with a living domain.
   */
  release(domid: number): void {
    const domain = this.domains.get(domid);
    if (domain === undefined || domid === 0) return;
    this.domains.delete(domid);
    for (const connection of domain.connections) connection.close();
    this.#rings.delete(domid);
    for (const other of this.domains.values()) if (other.target === domid) other.target = undefined;
    const removed = this.tree.removeDomain(domid);
    // The dead domain's unfinished jobs and the report of its death run in dom0's turns.
    const { turns } = this.#domain(0);
    turns.begin();
    for (const job of domain.turns.surrender()) turns.run(job);
    turns.run(this.#reportRelease(domid, removed));
  }

  /** The ring of a domain, for calling `pump`. */
  ringOf(domid: number): RingChannel | undefined {
    return this.#rings.get(domid);
  }

  /** Closes every connection and removes the sockets. */
  close(): void {
    for (const listeners of this.#listeners.values()) for (const listener of listeners) listener.close();
    this.#listeners.clear();
    for (const domain of this.domains.values())
      for (const connection of domain.connections) connection.close();
    this.#rings.clear();
  }

  // The methods used by requests (ServerState) and connections (ConnectionOwner).

  handle({ domain, session }: Connection, packet: XsPacket): void {
    this.#payloadBytes += packet.payload.length;
    if (this.#payloadBytes >= COLLECT_BYTES) {
      this.#payloadBytes = 0;
      Bun.gc(true);
    }
    domain.turns.run(handleRequest(this, session, packet));
  }

  repeat(...args: Parameters<ServerState["repeat"]>): boolean {
    return repeatRequest(this, ...args);
  }

  specialPermissions(path: string): Permissions {
    const exact = this.#specialPermissions.get(path);
    if (exact !== undefined) return exact;
    const base = [INTRODUCE_DOMAIN, RELEASE_DOMAIN].find((special) => isWithin(path, special));
    return base === undefined ? fail("ENOENT") : (this.#specialPermissions.get(base) ?? fail("ENOENT"));
  }

  setSpecialPermissions(path: string, permissions: Permissions): void {
    this.#specialPermissions.set(path, permissions);
  }

  domainExists(domid: number): boolean {
    return this.domains.has(domid);
  }

  introduceByRequest(domid: number, gfn: number, port: number): void {
    const present = this.#rings.get(domid);
    if (present !== undefined && this.personality.reintroduce === "compare") {
      if (present.ring.gfn !== gfn || present.ring.remotePort !== port) fail("EINVAL");
      return;
    }
    const ring = this.#openRing?.(domid, gfn, port);
    if (ring === undefined) {
      if (this.#openRing !== undefined) fail("EINVAL");
      this.introduce(domid);
    } else if (present === undefined) this.introduce(domid, ring);
    else present.restart(ring);
  }

  ringFrame(domid: number): number | undefined {
    return this.#rings.get(domid)?.ring.gfn;
  }

  #domain(domid: number): Domain {
    let domain = this.domains.get(domid);
    if (domain === undefined) {
      domain = new Domain(domid, this.quotas, this.now);
      this.domains.set(domid, domain);
    }
    return domain;
  }

  /** Returns undefined if the domain is gone or has too many connections. */
  #connect(domid: number, channel: Channel): Connection | undefined {
    const domain = this.domains.get(domid);
    if (domain === undefined || domain.connections.size >= domain.quotas.connections) return undefined;
    return new Connection(this, domain, channel, this.personality.overlong);
  }

  #attachRing(domain: Domain, ring: Ring): RingChannel {
    assert(!this.#rings.has(domain.domid), "a domain has one ring");
    const features = domain.features ?? this.defaultFeatures ?? this.personality.serverFeatures;
    const channel = new RingChannel(ring, this.personality, features);
    this.#rings.set(domain.domid, channel);
    channel.attach(new Connection(this, domain, channel, this.personality.overlong));
    return channel;
  }

  #fireSpecial(base: string, domid: number): void {
    this.watches.fireSpecial(base, domid, (path) => this.specialPermissions(path));
  }

  *#reportRelease(domid: number, removed: readonly Removed[]): Job {
    for (const { path, node } of removed) {
      this.watches.fire({ path, oldPermissions: node.permissions, removed: node }, this.tree);
      yield;
    }
    this.#fireSpecial(RELEASE_DOMAIN, domid);
    for (const special of this.#specialPermissions.keys())
      if (special.endsWith(`/${domid}`)) this.#specialPermissions.delete(special);
  }
}
