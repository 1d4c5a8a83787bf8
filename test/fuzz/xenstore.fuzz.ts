// Random requests of several clients of three domains to the xenstore server, transactions, watches and deaths among
// them, many malformed and all in pieces, against a model of it. Every reply and every event must be the model's,
// and so must the tree.
import {
  encodePathAndValue,
  encodeStrings,
  encodeText,
  formatPermission,
} from "../../src/protocol/xs-wire.ts";
import * as xs from "../../src/protocol/xs-wire.ts";
import { PERSONALITIES, PERSONALITY_NAMES } from "../../src/xenstore/server/personality.ts";
import type { Permissions } from "../../src/xenstore/server/permissions.ts";
import type { XenstoreServer } from "../../src/xenstore/server/server.ts";
import type { StoreNode } from "../../src/xenstore/server/store.ts";
import type { XenstoreTransport } from "../../src/xenstore/transport.ts";
import { descendants, RawClient, ServerFixture } from "../unit/xenstore-harness.ts";
import { Model, parentOf, type NodeRequest } from "./xenstore-model.ts";
import { wholeNumbers, type WholeNumbers } from "../support/random.ts";

const EPISODE_STEPS = 150;
const QUOTAS = { nodes: 24, watches: 4, transactions: 3, permissions: 3 };
const DOMIDS = [0, 0, 1, 1, 2];
const ROOTS = ["/fuzz", "/fuzz", "/local/domain/1/data", "/local/domain/2/data", "/local/domain/1", "/tool"];
const TYPES = {
  read: xs.XS_READ,
  list: xs.XS_DIRECTORY,
  perms: xs.XS_GET_PERMS,
  write: xs.XS_WRITE,
  mkdir: xs.XS_MKDIR,
  rm: xs.XS_RM,
  chmod: xs.XS_SET_PERMS,
} as const;
const KINDS = [
  ...(["read", "list", "perms", "chmod", "chmod", "rm", "rm", "mkdir", "mkdir"] as const),
  ...(["write", "write", "write", "write"] as const),
];

interface OpenTransaction {
  readonly id: number;
  readonly model: ReturnType<Model["begin"]>;
  /** C xenstored looks at the tree with the first request: only then the model begins, too. */
  readonly begun: boolean;
}

class Client {
  readonly raw: RawClient;
  readonly domid: number;
  transactions: OpenTransaction[] = [];

  constructor(raw: RawClient, domid: number) {
    this.raw = raw;
    this.domid = domid;
  }
}

/** One server from its start, with the model beside it. */
class Episode {
  readonly #random: WholeNumbers;
  readonly #fixture: ServerFixture;
  readonly #server: XenstoreServer;
  readonly #model: Model;
  readonly #clients: Client[] = [];
  readonly #ordered: boolean;
  /** What was done last, for whoever has to find out. */
  readonly trace: string[] = [];

  constructor(random: WholeNumbers) {
    this.#random = random;
    const name = this.#pick(PERSONALITY_NAMES);
    const quotas = { ...PERSONALITIES[name].quotas, ...QUOTAS };
    // Time passes now and then, so that turns end anywhere, also within the end of a transaction.
    const ticks = wholeNumbers(random(2 ** 31));
    let nowMs = 0;
    this.#fixture = new ServerFixture(name, { quotas, now: () => (nowMs += ticks(3)) });
    this.#server = this.#fixture.server;
    this.#ordered = PERSONALITIES[name].conflicts === "replay";
    this.trace.push(name);
    const domainExists = (domid: number): boolean => this.#server.domains.has(domid);
    this.#model = new Model({ personality: PERSONALITIES[name], quotas, domainExists });
    this.#server.tree.create("/fuzz", [{ domid: 0, access: "both" }]);
    this.#learnNewNodes();
    for (const domid of DOMIDS) this.#clients.push(this.#connect(domid));
  }

  async run(steps: number): Promise<void> {
    for (let step = 0; step < steps; step++) {
      await this.#step();
      await this.#compareEvents();
      if (step % 16 === 0) this.#compareTrees();
    }
    for (const { raw } of this.#clients) raw.close();
    this.#compareTrees();
    await this.#fixture.settle();
  }

  async #step(): Promise<void> {
    const client = this.#pick(this.#clients);
    const kind = this.#random(24);
    if (kind === 0) return this.#expect(client, ...this.#malformed(client));
    if (kind === 1 || kind === 2) return this.#begin(client);
    if (kind === 3 || kind === 4) return this.#end(client);
    if (kind === 5) return this.#watch(client);
    if (kind === 6) return this.#unwatch(client);
    if (kind === 7 && this.#random(8) === 0) return this.#die(1 + this.#random(2));
    return this.#nodeRequest(client);
  }

  async #nodeRequest(client: Client): Promise<void> {
    const request: NodeRequest = {
      kind: this.#pick(KINDS),
      domid: client.domid,
      path: this.#path(),
      value: String(this.#random(4)),
      permissions: this.#permissions(),
    };
    const open = this.#random(3) > 0 ? this.#any(client.transactions) : undefined;
    const reply =
      open === undefined
        ? this.#model.perform(request)
        : this.#model.performIn(this.#begun(client, open, request).model, request);
    const path = this.#shown(client, request.path);
    const { kind, value, permissions } = request;
    const payload =
      kind === "write"
        ? encodePathAndValue(path, encodeText(value))
        : encodeStrings(path, ...(kind === "chmod" ? permissions.map(formatPermission) : []));
    await this.#expect(client, TYPES[kind], payload, reply, open?.id);
  }

  /** The transaction, whose view of the nodes begins no later than with this request. */
  #begun(client: Client, open: OpenTransaction, { kind, permissions }: NodeRequest): OpenTransaction {
    const refusedAtOnce = kind === "chmod" && client.domid !== 0 && permissions.length > QUOTAS.permissions;
    if (open.begun || refusedAtOnce) return open;
    const begun = { ...open, model: this.#model.begin(), begun: true };
    client.transactions = client.transactions.map((each) => (each === open ? begun : each));
    return begun;
  }

  async #begin(client: Client): Promise<void> {
    this.trace.push(`${client.domid}: begin`);
    const reply = await client.raw.ask(xs.XS_TRANSACTION_START, [""]);
    const sameDomain = this.#clients.filter(({ domid }) => domid === client.domid);
    const count = sameDomain.reduce((sum, each) => sum + each.transactions.length, 0);
    const { personality } = this.#server;
    if (client.domid !== 0 && count >= QUOTAS.transactions)
      return this.#same(reply, personality.quotaErrno.transactions, "begin");
    const id = Number.parseInt(reply, 10);
    if (!(id > 0)) throw new Error(`begin answered ${reply}`);
    client.transactions.push({ id, model: this.#model.begin(), begun: this.#ordered });
  }

  async #end(client: Client): Promise<void> {
    const open = this.#any(client.transactions);
    if (open === undefined) return;
    client.transactions = client.transactions.filter((each) => each !== open);
    const commit = this.#random(4) > 0;
    const reply =
      commit && (open.begun || this.#ordered) ? this.#model.commit(open.model, client.domid) : "OK|";
    await this.#expect(client, xs.XS_TRANSACTION_END, encodeStrings(commit ? "T" : "F"), reply, open.id);
    await client.raw.ask(xs.XS_GET_DOMAIN_PATH, ["0"]); // its events are out
  }

  async #watch(client: Client): Promise<void> {
    const path = this.#path();
    const givenPath = this.#shown(client, path);
    const token = `t${this.#random(3)}`;
    const { personality } = this.#server;
    const depth = personality.watchDepth && this.#random(3) === 0 ? this.#random(3) : undefined;
    const owned = this.#model.watches.filter(({ client: at }) => this.#domidOf(at) === client.domid);
    const at = this.#clients.indexOf(client);
    const known = owned.some((each) => each.client === at && each.path === path && each.token === token);
    const full = client.domid !== 0 && owned.length >= QUOTAS.watches;
    const reply = known ? "EEXIST" : full ? personality.quotaErrno.watches : "OK|";
    const payload = encodeStrings(givenPath, token, ...(depth === undefined ? [] : [String(depth)]));
    await this.#expect(client, xs.XS_WATCH, payload, reply);
    if (reply !== "OK|") return;
    await turn();
    this.#same(client.raw.events.shift(), `${givenPath} ${token}`, "the first event");
    this.#model.watches.push({ client: at, path, givenPath, token, depth: depth ?? Infinity });
  }

  async #unwatch(client: Client): Promise<void> {
    const at = this.#clients.indexOf(client);
    const mine = this.#model.watches.filter((each) => each.client === at);
    const watch = this.#any(mine);
    if (this.#random(5) === 0) {
      await this.#expect(client, xs.XS_RESET_WATCHES, encodeStrings(""), "OK|");
      this.#model.watches = this.#model.watches.filter((each) => each.client !== at);
      client.transactions = [];
    } else if (watch !== undefined) {
      await this.#expect(client, xs.XS_UNWATCH, encodeStrings(watch.path, watch.token), "OK|");
      this.#model.watches = this.#model.watches.filter((each) => each !== watch);
    } else await this.#expect(client, xs.XS_UNWATCH, encodeStrings("/none", "t"), "ENOENT");
  }

  /** A domain dies, and there is another one of its number. */
  async #die(domid: number): Promise<void> {
    this.trace.push(`${domid} dies`);
    this.#server.destroyDomain(domid);
    this.#model.die(domid);
    this.#model.watches = this.#model.watches.filter(({ client }) => this.#domidOf(client) !== domid);
    await this.#clients[0]?.raw.ask(xs.XS_GET_DOMAIN_PATH, ["0"]); // the events are out
    await this.#compareEvents((client) => client.domid !== domid);
    this.#compareTrees();
    this.#server.createDomain(domid, "again");
    this.#learnNewNodes();
    await turn();
    for (const [at, client] of this.#clients.entries()) {
      if (client.domid === domid) this.#clients[at] = this.#connect(domid);
      client.raw.takeEvents();
    }
  }

  /** A request that no server takes, and how it is refused. */
  #malformed(client: Client): [type: number, payload: Uint8Array, reply: string, id?: number] {
    const open = this.#any(client.transactions);
    const cases: [number, Uint8Array, string, number?][] = [
      [20, encodeStrings("x"), "ENOSYS"],
      [xs.XS_INVALID, new Uint8Array(this.#random(40)), "ENOSYS"],
      [xs.XS_READ, encodeText("/fuzz"), "EINVAL"],
      [xs.XS_READ, encodeStrings("/fuzz", "/fuzz"), "EINVAL"],
      [xs.XS_READ, encodeStrings(this.#pick(["", "//", "/fuzz/", "/a b", "a//b", "/\x7f", "@x"])), "EINVAL"],
      [xs.XS_MKDIR, encodeStrings(`/${"long".repeat(800)}`), "EINVAL"],
      [xs.XS_WRITE, new Uint8Array(0), "EINVAL"],
      [xs.XS_WATCH, encodeStrings("/fuzz"), "EINVAL"],
      [xs.XS_SET_PERMS, encodeStrings("/fuzz", "x1"), "EINVAL"],
      [xs.XS_READ, encodeStrings("/fuzz"), "ENOENT", 0x7777_7777],
      [xs.XS_TRANSACTION_END, encodeStrings("T"), "ENOENT"],
      [xs.XS_TRANSACTION_END, encodeStrings("X"), "EINVAL", open?.id ?? 0],
    ];
    if (open !== undefined) cases.push([xs.XS_TRANSACTION_START, encodeStrings(""), "EBUSY", open.id]);
    if (client.domid !== 0) cases.push([xs.XS_RELEASE, encodeStrings("2"), "EACCES"]);
    return this.#pick(cases);
  }

  async #expect(client: Client, type: number, payload: Uint8Array, expected: string, id = 0): Promise<void> {
    const what = `${client.domid}: ${xs.xsTypeName(type) ?? type} ${JSON.stringify(xs.decodeText(payload))} in ${id}`;
    this.trace.push(what);
    const reply = await client.raw.ask(type, payload, id);
    const sorts = type === xs.XS_DIRECTORY && !this.#ordered; // the model knows no order where it merges
    this.#same(sorts ? sorted(reply) : reply, sorts ? sorted(expected) : expected, what);
  }

  async #compareEvents(included: (client: Client) => boolean = () => true): Promise<void> {
    await turn();
    const expected = this.#model.takeEvents((client) => this.#domidOf(client));
    for (const [at, client] of this.#clients.entries()) {
      if (!included(client)) continue;
      this.#same(
        onceEach(client.raw.takeEvents()),
        onceEach(expected.get(at) ?? []),
        `the events of client ${at}`,
      );
    }
  }

  #compareTrees(): void {
    const { tree } = this.#server;
    const { nodes } = this.#model.current;
    const seen = [...descendants("/", tree.get("/") as StoreNode)];
    for (const [path, { value, permissions, children, childNameBytes }] of seen) {
      const node = nodes.get(path);
      const shown = permissions.map(formatPermission).join();
      this.#same(
        `${xs.decodeText(value)} ${shown}`,
        `${node?.value} ${node?.permissions.map(formatPermission).join()}`,
        path,
      );
      const bytes = [...children.keys()].reduce((sum, name) => sum + name.length + 1, 0);
      this.#same(String(childNameBytes), String(bytes), `the names' bytes of ${path}`);
    }
    this.#same(String(seen.length), String(nodes.size), "the number of nodes");
    for (const domid of [0, 1, 2, 7])
      this.#same(String(tree.ownedBy(domid)), String(this.#model.current.owned(domid)), `what ${domid} owns`);
  }

  /** Nodes that a toolstack made, in the order in which it made them. */
  #learnNewNodes(path = "/", node = this.#server.tree.get("/") as StoreNode): void {
    const view = this.#model.current;
    if (!view.nodes.has(path)) {
      view.set(path, { value: xs.decodeText(node.value), permissions: node.permissions });
      if (path !== "/") view.set(parentOf(path), {});
    }
    for (const [name, child] of node.children) this.#learnNewNodes(xs.joinPath(path, name), child);
  }

  #connect(domid: number): Client {
    return new Client(new RawClient(this.#inPieces(this.#server.connectDirectly(domid))), domid);
  }

  /** The transport, but what is sent comes in pieces. */
  #inPieces(transport: XenstoreTransport): XenstoreTransport {
    const write = transport.write.bind(transport);
    transport.write = (packet) => {
      for (let at = 0; at < packet.length;) {
        const end = at + 1 + this.#random(this.#random(3) === 0 ? 20 : 4200);
        write(packet.subarray(at, end));
        at = end;
      }
    };
    return transport;
  }

  #path(): string {
    const depth = this.#random(4);
    return (
      this.#pick(ROOTS) + Array.from({ length: depth }, () => `/${this.#pick(["a", "b", "c"])}`).join("")
    );
  }

  /** `path` as the client may write it: relative, when it is below its own directory. */
  #shown(client: Client, path: string): string {
    const own = `/local/domain/${client.domid}/`;
    return path.startsWith(own) && this.#random(2) === 0 ? path.slice(own.length) : path;
  }

  #permissions(): Permissions {
    const access = ["none", "read", "write", "both"] as const;
    return Array.from({ length: 1 + this.#random(4) }, () => ({
      domid: this.#pick([0, 1, 1, 2, 2, 7]),
      access: this.#pick(access),
    }));
  }

  #domidOf(client: number): number {
    return this.#clients[client]?.domid ?? -1;
  }

  #same(found: string | undefined, expected: string, what: string): void {
    if (found !== expected) throw new Error(`${what}: ${found ?? "nothing"}, and the model says ${expected}`);
  }

  /** One of some. */
  #pick<T>(items: readonly T[]): T {
    return items[this.#random(items.length)];
  }

  /** One of some, if there are any. */
  #any<T>(items: readonly T[]): T | undefined {
    return items.length === 0 ? undefined : this.#pick(items);
  }
}

function sorted(names: string): string {
  return names.split("|").sort().join("|");
}

/** Equal events that wait together are one. */
function onceEach(events: readonly string[]): string {
  return [...new Set(events)].sort().join(", ");
}

function turn(): Promise<void> {
  return new Promise(setImmediate);
}

/** Makes `cases` requests. What it throws names the seed and the episode, and has what was done last. */
export async function run(cases: number, seed: number): Promise<void> {
  for (let done = 0; done < cases; done += EPISODE_STEPS) {
    // Each episode of its own seed: a failure is reproduced without those before it.
    const episode = new Episode(wholeNumbers(seed + done / EPISODE_STEPS));
    try {
      await episode.run(Math.min(EPISODE_STEPS, cases - done));
    } catch (error) {
      const at = seed + done / EPISODE_STEPS;
      const trace = episode.trace.slice(-40).join("\n  ");
      throw new Error(`xenstore: CASES=${EPISODE_STEPS} SEED=${at} fails:\n  ${trace}`, { cause: error });
    }
  }
}
