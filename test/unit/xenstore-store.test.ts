// The tree and its transactions against a model that is too simple to be wrong: whole copies of a flat
// map, and a conflict decided by comparing copies. Random, replayed with SEED=n.
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  decodeText,
  encodePathAndValue,
  encodeStrings,
  encodeText,
  XS_DIRECTORY,
  XS_READ,
  XS_RM,
  XS_TRANSACTION_END,
  XS_TRANSACTION_START,
  XS_WRITE,
  XS_MKDIR,
} from "../../src/protocol/xs-wire.ts";
import { PERSONALITIES, PERSONALITY_NAMES } from "../../src/xenstore/server/personality.ts";
import { StoreTree, type StoreNode } from "../../src/xenstore/server/store.ts";
import { descendants, ServerFixture, type RawClient } from "./xenstore-harness.ts";
import { chosenSeed } from "../support/random.ts";

const seed = chosenSeed();

/** Everything that can be seen of a tree. */
function picture(tree: StoreTree): Record<string, string> {
  const root = tree.get("/") as StoreNode;
  return Object.fromEntries([...descendants("/", root)].map(([path, node]) => [path, String(node.value)]));
}

describe("the tree", () => {
  const owner = (domid: number) => [{ domid, access: "none" as const }];

  test("a fork does not see what happens later, in either direction", () => {
    const tree = StoreTree.empty();
    tree.create("/a", owner(1));
    tree.create("/a/b", owner(1));
    const fork = tree.fork();
    tree.setValue("/a/b", encodeText("1"));
    fork.remove("/a/b");
    tree.create("/a/c", owner(2));
    expect(picture(tree)).toEqual({ "/": "", "/a": "", "/a/b": "49", "/a/c": "" });
    expect(picture(fork)).toEqual({ "/": "", "/a": "" });
    expect([tree.ownedBy(1), tree.ownedBy(2), fork.ownedBy(1), fork.ownedBy(2)]).toEqual([2, 1, 1, 0]);
  });

  test("generations change with a node's own value, permissions and children, and with nothing else", () => {
    const tree = StoreTree.empty();
    tree.create("/a", owner(0));
    tree.create("/a/b", owner(0));
    const generation = (path: string) => tree.get(path)?.generation;
    const [root, a, b] = ["/", "/a", "/a/b"].map(generation);
    tree.setValue("/a/b", encodeText("1"));
    expect([generation("/"), generation("/a")]).toEqual([root, a]);
    expect(generation("/a/b")).not.toBe(b);
    tree.remove("/a/b");
    expect(generation("/a")).not.toBe(a);
    expect(generation("/")).toBe(root);
  });

  test(`forks of forks under random changes (SEED=${seed})`, () => {
    const names = fc.constantFrom("/a", "/a/x", "/a/x/y", "/b", "/b/x");
    const action = fc.record({
      kind: fc.constantFrom("put", "remove", "own", "fork"),
      path: names,
      on: fc.nat(9),
      value: fc.nat(9),
    });
    fc.assert(
      fc.property(fc.array(action, { maxLength: 60, size: "max" }), (actions) => {
        const trees: { tree: StoreTree; model: Map<string, [value: number, owner: number]> }[] = [
          { tree: StoreTree.empty(), model: new Map([["/", [0, 0]]]) },
        ];
        for (const { kind, path, on, value } of actions) {
          const { tree, model } = trees[on % trees.length];
          if (kind === "fork") trees.push({ tree: tree.fork(), model: new Map(model) });
          else if (kind === "remove") {
            if (!model.has(path)) continue;
            tree.remove(path);
            for (const key of model.keys()) if (key === path || key.startsWith(`${path}/`)) model.delete(key);
          } else {
            const parent = path.slice(0, path.lastIndexOf("/")) || "/";
            if (!model.has(parent)) continue;
            if (!model.has(path)) {
              tree.create(path, owner(value));
              model.set(path, [0, value]);
            }
            if (kind === "own") tree.setPermissions(path, owner(value));
            else tree.setValue(path, Uint8Array.of(value));
            const [oldValue, oldOwner] = model.get(path) as [number, number];
            model.set(path, kind === "own" ? [oldValue, value] : [value, oldOwner]);
          }
        }
        for (const { tree, model } of trees) {
          const seen = [...descendants("/", tree.get("/") as StoreNode)].map(
            ([path, node]) => [path, [node.value[0] ?? 0, node.permissions[0]?.domid ?? -1]] as const,
          );
          expect(new Map(seen)).toEqual(new Map(model) as never);
          for (let domid = 0; domid < 10; domid++)
            expect(tree.ownedBy(domid)).toBe([...model.values()].filter(([, each]) => each === domid).length);
          for (const [, node] of descendants("/", tree.get("/") as StoreNode))
            expect(node.childNameBytes).toBe(
              [...node.children.keys()].reduce((sum, name) => sum + name.length + 1, 0),
            );
        }
      }),
      { seed, numRuns: 300 },
    );
  });
});

interface ModelRequest {
  readonly type: number;
  readonly path: string;
  readonly value: string;
  readonly reply: string;
}

interface ModelTransaction {
  readonly base: Map<string, string>;
  readonly view: Map<string, string>;
  readonly version: number;
  readonly log: ModelRequest[];
}

/** The naive server: a flat map, copied whole for each transaction. */
class Model {
  nodes = new Map<string, string>([["/m", ""]]);
  version = 0;
  readonly transactions = new Map<number, ModelTransaction>();

  begin(client: number): void {
    const { nodes, version } = this;
    this.transactions.set(client, { base: new Map(nodes), view: new Map(nodes), version, log: [] });
  }

  request(client: number, type: number, path: string, value: string): string {
    const tx = this.transactions.get(client);
    const reply = apply(tx?.view ?? this.nodes, type, path, value);
    if (tx !== undefined) tx.log.push({ type, path, value, reply });
    else if (isChange(type)) this.version++;
    return reply;
  }

  /** oxenstored's commit: everything again, with the same replies. */
  commitByReplay(tx: ModelTransaction): string {
    if (!tx.log.some(({ type }) => isChange(type))) return "OK|";
    const replayed = new Map(this.nodes);
    if (tx.version !== this.version)
      for (const { type, path, value, reply } of tx.log)
        if (apply(replayed, type, path, value) !== reply) return "EAGAIN";
    this.nodes = tx.version === this.version ? tx.view : replayed;
    this.version++;
    return "OK|";
  }

  /** What a commit by generations may have done: its changes and those of others, where they do not meet. */
  merge(tx: ModelTransaction): void {
    for (const key of new Set([...tx.base.keys(), ...tx.view.keys(), ...this.nodes.keys()])) {
      const [before, mine, now] = [tx.base.get(key), tx.view.get(key), this.nodes.get(key)];
      if (mine === before) continue;
      expect(now === before || now === mine).toBe(true);
      if (mine === undefined) this.nodes.delete(key);
      else this.nodes.set(key, mine);
    }
    this.version++;
  }
}

function isChange(type: number): boolean {
  return type !== XS_READ && type !== XS_DIRECTORY;
}

function apply(nodes: Map<string, string>, type: number, path: string, value: string): string {
  const below = [...nodes.keys()].filter((key) => key.startsWith(`${path}/`));
  if (type === XS_READ) return nodes.get(path) ?? "ENOENT";
  if (type === XS_DIRECTORY) {
    const names = below.map((key) => key.slice(path.length + 1)).filter((name) => !name.includes("/"));
    return nodes.has(path) ? sortedNames(names) : "ENOENT";
  }
  if (type === XS_RM) {
    if (!nodes.has(path)) return nodes.has(path.slice(0, path.lastIndexOf("/"))) ? "OK|" : "ENOENT";
    for (const key of [path, ...below]) nodes.delete(key);
    return "OK|";
  }
  const parts = path.split("/").slice(1);
  for (let depth = 1; depth <= parts.length; depth++) {
    const each = `/${parts.slice(0, depth).join("/")}`;
    if (!nodes.has(each)) nodes.set(each, "");
  }
  if (type === XS_WRITE) nodes.set(path, value);
  return "OK|";
}

function sortedNames(names: readonly string[]): string {
  return [...names]
    .sort()
    .map((name) => `${name}|`)
    .join("");
}

describe("the server against the model", () => {
  const command = fc.record({
    client: fc.nat(2),
    kind: fc.constantFrom(
      "read",
      "read",
      "write",
      "write",
      "write",
      "mkdir",
      "rm",
      "list",
      "begin",
      "commit",
      "abort",
    ),
    path: fc.constantFrom("/m/a", "/m/a/b", "/m/a/b/c", "/m/d", "/m/d/e"),
    value: fc.nat(9),
  });
  const types: Record<string, number> = {
    read: XS_READ,
    write: XS_WRITE,
    mkdir: XS_MKDIR,
    rm: XS_RM,
    list: XS_DIRECTORY,
  };

  test.each([...PERSONALITY_NAMES])(
    `answers and commits as the model (%s, SEED=${seed})`,
    async (personality) => {
      const replays = PERSONALITIES[personality].conflicts === "replay";

      const end = async (
        client: RawClient,
        id: number,
        tx: ModelTransaction,
        model: Model,
        commit: boolean,
      ) => {
        const reply = await client.ask(XS_TRANSACTION_END, [commit ? "T" : "F"], id);
        if (!commit) expect(reply).toBe("OK|");
        else if (replays) expect(reply).toBe(model.commitByReplay(tx));
        else if (tx.version === model.version) expect(reply).toBe("OK|");
        else expect(["OK|", "EAGAIN"]).toContain(reply);
        if (commit && !replays && reply === "OK|") model.merge(tx);
      };

      const play = async (
        fixture: ServerFixture,
        commands: readonly { client: number; kind: string; path: string; value: number }[],
      ) => {
        const clients = [fixture.client(0), fixture.client(0), fixture.client(0)];
        const ids = [0, 0, 0];
        const model = new Model();
        await clients[0].ask(XS_MKDIR, ["/m"]);
        for (const { client: index, kind, path, value } of commands) {
          const client = clients[index];
          const id = ids[index];
          const tx = model.transactions.get(index);
          if (kind === "begin" && tx === undefined) {
            ids[index] = Number.parseInt(await client.ask(XS_TRANSACTION_START, [""]), 10);
            await client.ask(XS_READ, ["/tool"], ids[index]); // C xenstored looks no earlier than this
            model.begin(index);
          } else if ((kind === "commit" || kind === "abort") && tx !== undefined) {
            ids[index] = 0;
            model.transactions.delete(index);
            await end(client, id, tx, model, kind === "commit");
          } else if (types[kind] !== undefined) {
            const type = types[kind];
            const payload =
              type === XS_WRITE ? encodePathAndValue(path, encodeText(`${value}`)) : encodeStrings(path);
            const reply = await client.ask(type, payload, id);
            const listed = type === XS_DIRECTORY && reply.endsWith("|");
            const shown = listed ? sortedNames(reply.split("|").slice(0, -1)) : reply;
            expect([kind, path, shown]).toEqual([kind, path, model.request(index, type, path, `${value}`)]);
          }
          const now = descendants("/m", fixture.server.tree.get("/m") as StoreNode);
          expect(new Map([...now].map(([key, node]) => [key, decodeText(node.value)]))).toEqual(model.nodes);
        }
      };

      await fc.assert(
        fc.asyncProperty(fc.array(command, { maxLength: 60, size: "max" }), async (commands) => {
          const fixture = new ServerFixture(personality);
          await play(fixture, commands);
          fixture.close();
        }),
        { seed, numRuns: 150 },
      );
    },
  );
});
