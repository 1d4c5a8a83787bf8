// The xenstore server: one tree, its watches, and the domains that are connected by socket, ring page or
// from within this process. Everything is served on the calling thread; a request never waits for another.
import { assert, XentoolError } from "../../core/errors.ts";
import { isWithin, type XsPacket } from "../../protocol/xs-wire.ts";
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

/**
 * After requests of this many bytes the garbage that they left is collected. The collector alone waits until there is
 * several times as much garbage as live data, and a flood of large values fills the memory before that.
 */
const COLLECT_BYTES = 16 * 1024 * 1024;

export interface XenstoreServerOptions {
  readonly personality: PersonalityName;
  /** Replaces some of the personality's limits for domains without privileges. */
  readonly quotas?: Partial<Quotas>;
  /**
   * Opens the ring that an INTRODUCE request names: the page `gfn` of `domid` and its event channel
   * `port`. Undefined when there is no such page or port. Without it domains are introduced without a ring.
   */
  readonly openRing?: (domid: number, gfn: number, port: number) => Ring | undefined;
  /** Milliseconds of a clock that only goes forward. */
  readonly now?: () => number;
}

/** What is there: all zero, but for nodes and domains, when every client is gone. */
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
  /** Of the requests since the last collection. */
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

  /** Makes a domain as a toolstack does: its directory with libxl's permissions, then its introduction. */
  createDomain(domid: number, name: string): void {
    for (const path of seedDomain(this.tree, domid, name))
      this.watches.fire({ path, oldPermissions: undefined, removed: undefined }, this.tree);
    this.introduce(domid);
  }

  /** Listens at the socket `path` for clients that are `domid`. Fails with `environment` when it cannot. */
  async listen(path: string, domid: number): Promise<void> {
    const listener = listenOnSocket(path, (channel) => this.#connect(domid, channel));
    this.#listeners.set(domid, [...(this.#listeners.get(domid) ?? []), listener]);
    this.#domain(domid);
  }

  /** A client's transport within this process, for a client that is `domid`. */
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
   * Introduces a domain, which @introduceDomain reports, with or without a ring. The ring is the server's
   * from now on: call `pump` of what this returns for each event on its port.
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

  /** A domain is gone for good: as `release`, and with it go its sockets. */
  destroyDomain(domid: number): void {
    for (const listener of this.#listeners.get(domid) ?? []) listener.close();
    this.#listeners.delete(domid);
    this.release(domid);
  }

  /**
   * A domain is gone: with it its connections, ring and nodes. @releaseDomain reports it. Its sockets refuse
   * everyone until it is introduced again, as a toolstack may do with a domain that lives.
   */
  release(domid: number): void {
    const domain = this.domains.get(domid);
    if (domain === undefined || domid === 0) return;
    this.domains.delete(domid);
    for (const connection of domain.connections) connection.close();
    this.#rings.delete(domid);
    for (const other of this.domains.values()) if (other.target === domid) other.target = undefined;
    const removed = this.tree.removeDomain(domid);
    // What a dead domain's turns were to do, and to report that it died, is dom0's work.
    const { turns } = this.#domain(0);
    turns.begin();
    for (const job of domain.turns.surrender()) turns.run(job);
    turns.run(this.#reportRelease(domid, removed));
  }

  /** The ring of a domain, to be pumped. */
  ringOf(domid: number): RingChannel | undefined {
    return this.#rings.get(domid);
  }

  /** Ends every connection and removes the sockets. */
  close(): void {
    for (const listeners of this.#listeners.values()) for (const listener of listeners) listener.close();
    this.#listeners.clear();
    for (const domain of this.domains.values())
      for (const connection of domain.connections) connection.close();
    this.#rings.clear();
  }

  // What requests use (ServerState), and connections (ConnectionOwner).

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

  /** Undefined when the domain is gone or has too many connections. */
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
