// The server's rules, one row each: who asks what, in which transaction, and what the answer is. The rows
// of a case run in order against a fresh server with the domains 0, 1 and 2 (docs/misc/xenstore.txt).
import { afterEach, describe, expect, test } from "bun:test";
import * as xs from "../../src/protocol/xs-wire.ts";
import { PERSONALITY_NAMES, type PersonalityName } from "../../src/xenstore/server/personality.ts";
import { ServerFixture, type RawClient } from "./xenstore-harness.ts";

/** `domid` or `domid:connection`, the transaction's name if any, the request, its strings, the expected reply. */
type Row = readonly [
  who: string,
  tx: string,
  type: number,
  strings: readonly string[] | Uint8Array,
  reply: string,
];

const C: readonly PersonalityName[] = ["xenstored-4.17", "xenstored-4.22"];
const OX: readonly PersonalityName[] = ["oxenstored", "rfc-2014"];

let fixture: ServerFixture;
afterEach(() => fixture.close());

/** A WRITE's payload. */
const w = (path: string, value: string): Uint8Array => xs.encodePathAndValue(path, xs.encodeText(value));

/** Runs the rows; gives each connection's events as text. */
async function play(personality: PersonalityName, rows: readonly Row[]): Promise<Record<string, string[]>> {
  fixture = new ServerFixture(personality);
  const clients = new Map<string, RawClient>();
  const transactions = new Map<string, number>();
  const events: Record<string, string[]> = {};
  for (const [index, [who, tx, type, strings, expected]] of rows.entries()) {
    const client = clients.get(who) ?? fixture.client(Number.parseInt(who, 10));
    clients.set(who, client);
    if (type === xs.XS_TRANSACTION_START && tx !== "") {
      transactions.set(tx, Number.parseInt(await client.ask(type, [""]), 10));
      continue;
    }
    const id = tx === "" ? 0 : (transactions.get(tx) ?? 12345);
    const reply = await client.ask(type, strings, id);
    expect({ row: index, who, request: xs.xsTypeName(type), reply }).toEqual({
      row: index,
      who,
      request: xs.xsTypeName(type),
      reply: expected,
    });
  }
  for (const [who, client] of clients) {
    if (!client.lost) await client.ask(xs.XS_GET_DOMAIN_PATH, ["0"]);
    events[who] = client.takeEvents();
  }
  return events;
}

function cases(
  title: string,
  personalities: readonly PersonalityName[],
  rows: readonly Row[],
  events = {},
): void {
  test.each([...personalities])(`${title} (%s)`, async (personality) => {
    expect(await play(personality, rows)).toMatchObject(events);
  });
}

const ALL = PERSONALITY_NAMES;
const { XS_READ, XS_WRITE, XS_MKDIR, XS_RM, XS_DIRECTORY, XS_GET_PERMS, XS_SET_PERMS, XS_WATCH, XS_UNWATCH } =
  xs;
const START = xs.XS_TRANSACTION_START;
const END = xs.XS_TRANSACTION_END;

describe("paths and payloads", () => {
  cases("relative paths are in the client's own directory", ALL, [
    ["1", "", XS_WRITE, w("data/x", "1"), "OK|"],
    ["0", "", XS_READ, ["/local/domain/1/data/x"], "1"],
    ["1", "", XS_READ, ["data/x"], "1"],
  ]);
  cases("what is no path is EINVAL", ALL, [
    ["0", "", XS_READ, ["/a//b"], "EINVAL"],
    ["0", "", XS_READ, ["/a/"], "EINVAL"],
    ["0", "", XS_READ, [""], "EINVAL"],
    ["0", "", XS_READ, ["@releaseDomain"], "EINVAL"],
    ["0", "", XS_WRITE, w("@x", "1"), "EINVAL"],
    ["0", "", XS_READ, [`/${"a".repeat(3100)}`], "EINVAL"],
    ["0", "", XS_READ, new Uint8Array([0x2f, 0x61]), "EINVAL"],
    ["0", "", XS_READ, new Uint8Array(0), "EINVAL"],
    ["0", "", XS_READ, ["/tool", ""], "EINVAL"],
    ["0", "", XS_WRITE, xs.encodeText("/nothing-ends-this"), "EINVAL"],
    ["0", "", XS_READ, new Uint8Array([0x2f, 0xff, 0]), "EINVAL"],
  ]);
  cases("a domain's paths are shorter", ALL, [
    ["1", "", XS_WRITE, w(`/local/domain/1/data/${"a".repeat(2044)}`, ""), "EINVAL"],
    ["1", "", XS_WRITE, w(`data/${"a".repeat(1000)}`, ""), "OK|"],
  ]);
  cases("unknown types are ENOSYS", ALL, [
    ["0", "", 20, [], "ENOSYS"],
    ["0", "", 99, [], "ENOSYS"],
    ["0", "", xs.XS_WATCH_EVENT, ["/a", "t"], "ENOSYS"],
    ["0", "", xs.XS_ERROR, ["EINVAL"], "ENOSYS"],
  ]);
});

describe("nodes", () => {
  cases("a domain that makes a node owns it; dom0 makes it for the parent's owner", ALL, [
    ["1", "", XS_WRITE, w("data/a/b", "1"), "OK|"],
    ["0", "", XS_GET_PERMS, ["/local/domain/1/data/a"], "n1|"],
    ["0", "", XS_WRITE, w("/local/domain/1/data/a/c", "1"), "OK|"],
    ["0", "", XS_GET_PERMS, ["/local/domain/1/data/a/c"], "n1|"],
    ["0", "", XS_SET_PERMS, ["/local/domain/1/device", "n0", "b1"], "OK|"],
    ["1", "", XS_MKDIR, ["device/x"], "OK|"],
    ["1", "", XS_GET_PERMS, ["device/x"], "n1|b1|"],
  ]);
  cases("rm of a missing node is fine where the parent exists", ALL, [
    ["0", "", XS_RM, ["/tool/none"], "OK|"],
    ["0", "", XS_RM, ["/tool/none/none"], "ENOENT"],
  ]);
  cases("rm / is refused", C, [["0", "", XS_RM, ["/"], "EINVAL"]]);
  cases("rm / empties the tree", OX, [
    ["0", "", XS_RM, ["/"], "OK|"],
    ["0", "", XS_DIRECTORY, ["/"], ""],
  ]);
  cases("directories list their names, in order of making", ALL, [
    ["0", "", XS_MKDIR, ["/d/b"], "OK|"],
    ["0", "", XS_MKDIR, ["/d/a"], "OK|"],
    ["0", "", XS_DIRECTORY, ["/d"], "b|a|"],
    ["0", "", XS_RM, ["/d/b"], "OK|"],
    ["0", "", XS_DIRECTORY, ["/d"], "a|"],
    ["0", "", XS_DIRECTORY, ["/d/a"], ""],
    ["0", "", XS_READ, ["/d"], ""],
  ]);
});

describe("permissions", () => {
  cases("without a right nothing is told, not even that there is nothing", ALL, [
    ["1", "", XS_READ, ["/local/domain/2/name"], "EACCES"],
    ["1", "", XS_READ, ["/local/domain/2/none"], "EACCES"],
    ["1", "", XS_DIRECTORY, ["/"], "EACCES"],
    ["1", "", XS_READ, ["/none"], "EACCES"],
    ["1", "", XS_READ, ["none"], "ENOENT"],
    ["1", "", XS_GET_PERMS, ["/local/domain/2"], "EACCES"],
  ]);
  cases("reading is not writing", ALL, [
    ["1", "", XS_READ, ["name"], "one"],
    ["1", "", XS_WRITE, w("name", "x"), "EACCES"],
    ["1", "", XS_WRITE, w("new", "x"), "EACCES"],
    ["1", "", XS_MKDIR, ["new"], "EACCES"],
    ["1", "", XS_RM, ["name"], "EACCES"],
    ["1", "", XS_RM, ["device"], "EACCES"],
    ["1", "", XS_SET_PERMS, ["name", "b1"], "EACCES"],
  ]);
  cases("an entry of one's own counts, not what all others may", ALL, [
    ["0", "", XS_WRITE, w("/p", "1"), "OK|"],
    ["0", "", XS_SET_PERMS, ["/p", "r0", "w1"], "OK|"],
    ["1", "", XS_READ, ["/p"], "EACCES"],
    ["1", "", XS_WRITE, w("/p", "2"), "OK|"],
    ["2", "", XS_READ, ["/p"], "2"],
    ["2", "", XS_WRITE, w("/p", "3"), "EACCES"],
    ["1", "", XS_SET_PERMS, ["/p", "b0"], "EACCES"],
    ["0", "", XS_GET_PERMS, ["/p"], "r0|w1|"],
  ]);
  cases("an owner shares its node and cannot give it away", ALL, [
    ["1", "", XS_WRITE, w("data/x", "1"), "OK|"],
    ["2", "", XS_READ, ["/local/domain/1/data/x"], "EACCES"],
    ["1", "", XS_SET_PERMS, ["data/x", "n1", "r2"], "OK|"],
    ["2", "", XS_READ, ["/local/domain/1/data/x"], "1"],
    ["1", "", XS_SET_PERMS, ["data/x", "n2"], "EPERM"],
    ["0", "", XS_SET_PERMS, ["/local/domain/1/data/x", "n2"], "OK|"],
    ["1", "", XS_READ, ["data/x"], "EACCES"],
  ]);
  cases("malformed permissions are EINVAL", ALL, [
    ["0", "", XS_SET_PERMS, ["/tool", "x1"], "EINVAL"],
    ["0", "", XS_SET_PERMS, ["/tool"], "EINVAL"],
    ["0", "", XS_SET_PERMS, ["/tool", ""], "EINVAL"],
    ["0", "", XS_SET_PERMS, ["/none", "n0"], "ENOENT"],
  ]);
  cases("an owner exists, and others that do not are left out", C, [
    ["0", "", XS_SET_PERMS, ["/tool", "n7"], "ENOENT"],
    ["0", "", XS_SET_PERMS, ["/tool", "n0", "r7", "r1"], "OK|"],
    ["0", "", XS_GET_PERMS, ["/tool"], "n0|r1|"],
  ]);
  cases("domains may be named before they exist", OX, [
    ["0", "", XS_SET_PERMS, ["/tool", "n0", "r7"], "OK|"],
    ["0", "", XS_GET_PERMS, ["/tool"], "n0|r7|"],
  ]);
  cases("a device model's domain has its target's rights", ALL, [
    ["1", "", XS_WRITE, w("data/x", "1"), "OK|"],
    ["2", "", XS_READ, ["/local/domain/1/data/x"], "EACCES"],
    ["2", "", xs.XS_SET_TARGET, ["2", "1"], "EACCES"],
    ["0", "", xs.XS_SET_TARGET, ["2", "1"], "OK|"],
    ["2", "", XS_READ, ["/local/domain/1/data/x"], "1"],
    ["2", "", XS_WRITE, w("/local/domain/1/data/x", "2"), "OK|"],
    ["1", "", XS_READ, ["/local/domain/2/name"], "EACCES"],
    ["0", "", xs.XS_SET_TARGET, ["2", "9"], "ENOENT"],
  ]);
  cases("special paths have permissions too", ALL, [
    ["0", "", XS_SET_PERMS, ["@introduceDomain", "n0", "r1"], "OK|"],
    ["0", "", XS_GET_PERMS, ["@introduceDomain"], "n0|r1|"],
    ["1", "", XS_SET_PERMS, ["@introduceDomain", "b1"], "EACCES"],
    ["0", "", XS_GET_PERMS, ["@nonsense"], "ENOENT"],
  ]);
});

describe("transactions", () => {
  cases("ids, ends and nesting", ALL, [
    ["0", "none", XS_READ, ["/tool"], "ENOENT"],
    ["0", "a", START, [""], ""],
    ["0", "a", START, [""], ""],
    ["0", "a", END, ["X"], "EINVAL"],
    ["0", "a", END, ["F"], "OK|"],
    ["0", "a", END, ["F"], "ENOENT"],
    ["0", "", END, ["T"], "ENOENT"],
    ["0:b", "a", XS_READ, ["/tool"], "ENOENT"],
  ]);
  cases("its writes are its own until the commit", ALL, [
    ["0", "a", START, [""], ""],
    ["0", "a", XS_WRITE, w("/x", "1"), "OK|"],
    ["0", "a", XS_READ, ["/x"], "1"],
    ["0", "", XS_READ, ["/x"], "ENOENT"],
    ["0", "a", END, ["T"], "OK|"],
    ["0", "", XS_READ, ["/x"], "1"],
  ]);
  cases("what it read and another wrote is a conflict once it wrote", ALL, [
    ["0", "", XS_WRITE, w("/x", "1"), "OK|"],
    ["0", "a", START, [""], ""],
    ["0", "a", XS_READ, ["/x"], "1"],
    ["0", "a", XS_WRITE, w("/y", "1"), "OK|"],
    ["0:b", "", XS_WRITE, w("/x", "2"), "OK|"],
    ["0", "a", XS_READ, ["/x"], "1"],
    ["0", "a", END, ["T"], "EAGAIN"],
    ["0", "", XS_READ, ["/y"], "ENOENT"],
    ["0", "a", END, ["T"], "ENOENT"],
  ]);
  cases("an absence that it saw counts", ALL, [
    ["0", "a", START, [""], ""],
    ["0", "a", XS_READ, ["/x"], "ENOENT"],
    ["0", "a", XS_WRITE, w("/tool/y", "1"), "OK|"],
    ["0:b", "", XS_WRITE, w("/x", "2"), "OK|"],
    ["0", "a", END, ["T"], "EAGAIN"],
  ]);
  cases("changes elsewhere are no conflict", ALL, [
    ["0", "", XS_WRITE, w("/x/a", "1"), "OK|"],
    ["0", "a", START, [""], ""],
    ["0", "a", XS_WRITE, w("/x/a", "2"), "OK|"],
    ["0:b", "", XS_WRITE, w("/z/b", "3"), "OK|"],
    ["0", "a", END, ["T"], "OK|"],
    ["0", "", XS_READ, ["/x/a"], "2"],
    ["0", "", XS_READ, ["/z/b"], "3"],
  ]);
  const siblings = (end: string): readonly Row[] => [
    ["0", "", XS_MKDIR, ["/d"], "OK|"],
    ["0", "a", START, [""], ""],
    ["0:b", "b", START, [""], ""],
    ["0", "a", XS_WRITE, w("/d/a", "1"), "OK|"],
    ["0:b", "b", XS_WRITE, w("/d/b", "2"), "OK|"],
    ["0", "a", END, ["T"], "OK|"],
    ["0:b", "b", END, ["T"], end],
  ];
  cases("two new nodes in one directory are a conflict", C, siblings("EAGAIN"));
  cases("two new nodes in one directory are merged", OX, siblings("OK|"));
  const readOnly = (end: string): readonly Row[] => [
    ["0", "a", START, [""], ""],
    ["0", "a", XS_READ, ["/tool"], ""],
    ["0:b", "", XS_WRITE, w("/tool", "1"), "OK|"],
    ["0", "a", END, ["T"], end],
  ];
  cases("reading alone is a conflict", C, readOnly("EAGAIN"));
  cases("reading alone is no conflict", OX, readOnly("OK|"));
  cases("removing and making again keeps what was made", ALL, [
    ["0", "", XS_WRITE, w("/r/a", "1"), "OK|"],
    ["0", "a", START, [""], ""],
    ["0", "a", XS_RM, ["/r"], "OK|"],
    ["0", "a", XS_WRITE, w("/r/b", "2"), "OK|"],
    ["0:b", "", XS_WRITE, w("/tool/elsewhere", "1"), "OK|"],
    ["0", "a", END, ["T"], "OK|"],
    ["0", "", XS_DIRECTORY, ["/r"], "b|"],
    ["0", "", XS_READ, ["/tool/elsewhere"], "1"],
  ]);
});

describe("directories after a commit that was merged", () => {
  cases("are in order of making, also when a node was removed and made again", ALL, [
    ["0", "", XS_MKDIR, ["/d/a"], "OK|"],
    ["0", "", XS_MKDIR, ["/d/b"], "OK|"],
    ["0", "a", START, [""], ""],
    ["0", "a", XS_RM, ["/d/a"], "OK|"],
    ["0", "a", XS_MKDIR, ["/d/c"], "OK|"],
    ["0", "a", XS_MKDIR, ["/d/a"], "OK|"],
    ["0:b", "", XS_WRITE, w("/tool/elsewhere", "1"), "OK|"],
    ["0", "a", END, ["T"], "OK|"],
    ["0", "", XS_DIRECTORY, ["/d"], "b|c|a|"],
  ]);
});

describe("watches", () => {
  cases(
    "one initial event, then one for each change, with the path as it was watched",
    ALL,
    [
      ["1", "", XS_WATCH, ["data", "rel"], "OK|"],
      ["1", "", XS_WATCH, ["/local/domain/1/data", "abs"], "OK|"],
      ["1", "", XS_WRITE, w("data/x", "1"), "OK|"],
      ["1", "", XS_WATCH, ["data", "rel"], "EEXIST"],
      ["1", "", XS_UNWATCH, ["data", "none"], "ENOENT"],
      ["1", "", XS_UNWATCH, ["data", "rel"], "OK|"],
      ["1", "", XS_RM, ["data/x"], "OK|"],
    ],
    {
      "1": [
        "data rel",
        "/local/domain/1/data abs",
        "data/x rel",
        "/local/domain/1/data/x abs",
        "/local/domain/1/data/x abs",
      ],
    },
  );
  cases(
    "who may read neither the node nor its parent hears nothing but the first event",
    ALL,
    [
      ["2", "", XS_WATCH, ["/local/domain/1", "t"], "OK|"],
      ["2", "", XS_WATCH, ["/none/at/all", "t"], "OK|"],
      ["1", "", XS_WRITE, w("data/x", "1"), "OK|"],
      ["1", "", XS_SET_PERMS, ["data/x", "n1", "r2"], "OK|"],
      ["1", "", XS_WRITE, w("data/x", "2"), "OK|"],
      ["1", "", XS_SET_PERMS, ["data/x", "n1"], "OK|"],
      ["1", "", XS_WRITE, w("data/x", "3"), "OK|"],
    ],
    {
      "2": [
        "/local/domain/1 t",
        "/none/at/all t",
        ...Array.from({ length: 3 }, () => "/local/domain/1/data/x t"),
      ],
    },
  );
  cases(
    "removal is reported below, each node with its own path",
    ALL,
    [
      ["0", "", XS_WRITE, w("/a/b/c", "1"), "OK|"],
      ["0", "", XS_WATCH, ["/a/b/c", "c"], "OK|"],
      ["0", "", XS_WATCH, ["/a/b/none", "none"], "OK|"],
      ["0", "", XS_WATCH, ["/", "root"], "OK|"],
      ["0", "", XS_RM, ["/a"], "OK|"],
    ],
    { "0": ["/a/b/c c", "/a/b/none none", "/ root", "/a root", "/a/b/c c"] },
  );
  cases(
    "a transaction's id means nothing to watches, and its events come with the commit",
    ALL,
    [
      ["0", "none", XS_WATCH, ["/t", "t"], "OK|"],
      ["0:b", "a", START, [""], ""],
      ["0:b", "a", XS_WRITE, w("/t/x", "1"), "OK|"],
      ["0", "", XS_WRITE, w("/u", "1"), "OK|"],
      ["0:b", "a", END, ["F"], "OK|"],
      ["0:b", "b", START, [""], ""],
      ["0:b", "b", XS_WRITE, w("/t/y", "1"), "OK|"],
      ["0:b", "b", END, ["T"], "OK|"],
    ],
    { "0": ["/t t", "/t/y t"] },
  );
  const depth: readonly Row[] = [
    ["0", "", XS_WATCH, ["/t", "t", "1"], "OK|"],
    ["0", "", XS_WRITE, w("/t/x", "1"), "OK|"],
    ["0", "", XS_WRITE, w("/t/x/y", "1"), "OK|"],
    ["0", "", XS_WATCH, ["/t", "bad", "x"], "EINVAL"],
  ];
  cases("a depth limits how far below is reported", ["xenstored-4.22", "oxenstored"], depth, {
    "0": ["/t t", "/t/x t"],
  });
  cases(
    "a depth is not known",
    ["xenstored-4.17", "rfc-2014"],
    [["0", "", XS_WATCH, ["/t", "t", "1"], "EINVAL"]],
  );
  cases(
    "RESET_WATCHES ends them all, and transactions",
    ALL,
    [
      ["0", "", XS_WATCH, ["/t", "t"], "OK|"],
      ["0", "a", START, [], ""],
      ["0", "", xs.XS_RESET_WATCHES, [""], "OK|"],
      ["0", "a", END, ["T"], "ENOENT"],
      ["0", "", XS_WRITE, w("/t", "1"), "OK|"],
    ],
    { "0": ["/t t"] },
  );
  cases(
    "domains that come and go are reported to who may know",
    ["xenstored-4.22"],
    [
      ["0", "", XS_WATCH, ["@introduceDomain", "i"], "OK|"],
      ["0", "", XS_WATCH, ["@releaseDomain", "r", "1"], "OK|"],
      ["0", "", XS_WATCH, ["@releaseDomain/5", "r5"], "OK|"],
      ["1", "", XS_WATCH, ["@introduceDomain", "i"], "OK|"],
      ["1", "", XS_WATCH, ["@releaseDomain", "r"], "OK|"],
      ["0:b", "", xs.XS_INTRODUCE, ["5", "1", "2"], "OK|"],
      ["0:b", "", xs.XS_INTRODUCE, ["5", "1", "2"], "OK|"],
      ["0:b", "", xs.XS_RELEASE, ["5"], "OK|"],
    ],
    {
      "0": [
        "@introduceDomain i",
        "@releaseDomain r",
        "@releaseDomain/5 r5",
        "@introduceDomain i",
        "@releaseDomain/5 r",
        "@releaseDomain/5 r5",
      ],
      "1": ["@introduceDomain i", "@releaseDomain r", "@releaseDomain r"],
    },
  );
});

test.each([...ALL])("a token is bytes, and comes back as it was (%s)", async (personality) => {
  fixture = new ServerFixture(personality, { now: () => 0 }); // all in one turn
  const transport = fixture.server.connectDirectly(1);
  const parser = new xs.XsPacketParser();
  transport.onData = (bytes) => parser.push(bytes);
  const tokens = ["ff", "fe", "efbbbf41", "6fc3", "ff".repeat(2000)];
  const payloads = tokens.map((token) =>
    Buffer.from(`data\0${Buffer.from(token, "hex").toString("latin1")}\0`, "latin1"),
  );
  for (const type of [XS_WATCH, XS_UNWATCH])
    for (const payload of payloads) transport.write(xs.encodePacket(type, 0, 0, payload));
  await new Promise(setImmediate);
  const got: string[] = [];
  for (let packet = parser.next(); packet !== undefined; packet = parser.next())
    got.push(
      packet.type === xs.XS_WATCH_EVENT
        ? Buffer.from(packet.payload).toString("hex")
        : xs.decodeText(packet.payload),
    );
  const events = payloads.map((payload) => payload.toString("hex"));
  expect(got).toEqual([...events.flatMap((event) => ["OK\0", event]), ...events.map(() => "OK\0")]);
  transport.close();
});

describe("domains", () => {
  cases("only dom0 asks for others", ALL, [
    ["1", "", xs.XS_INTRODUCE, ["5", "1", "2"], "EACCES"],
    ["1", "", xs.XS_RELEASE, ["2"], "EACCES"],
    ["1", "", xs.XS_IS_DOMAIN_INTRODUCED, ["1"], "EACCES"],
    ["1", "", xs.XS_RESUME, ["1"], "EACCES"],
    ["1", "", xs.XS_CONTROL, ["print"], "EACCES"],
    ["1", "", xs.XS_GET_DOMAIN_PATH, ["2"], "/local/domain/2|"],
    ["0", "", xs.XS_IS_DOMAIN_INTRODUCED, ["1"], "T|"],
    ["0", "", xs.XS_IS_DOMAIN_INTRODUCED, ["5"], "F|"],
    ["0", "", xs.XS_RELEASE, ["x"], "EINVAL"],
    ["0", "", xs.XS_RESUME, ["1"], "OK|"],
  ]);
  cases("a domain and a command that C xenstored does not know", C, [
    ["0", "", xs.XS_RELEASE, ["5"], "ENOENT"],
    ["0", "", xs.XS_CONTROL, ["no-such-command"], "EINVAL"],
  ]);
  cases("a domain and a command that oxenstored does not know", OX, [
    ["0", "", xs.XS_RELEASE, ["5"], "EINVAL"],
    ["0", "", xs.XS_CONTROL, ["no-such-command"], "OK|"],
  ]);
  cases("a domain takes its nodes along, and leaves no permission to its successor", ALL, [
    ["1", "", XS_WRITE, w("data/x", "1"), "OK|"],
    ["0", "", XS_WRITE, w("/shared", "1"), "OK|"],
    ["0", "", XS_SET_PERMS, ["/shared", "n0", "r1"], "OK|"],
    ["0", "", xs.XS_RELEASE, ["1"], "OK|"],
    ["0", "", XS_READ, ["/local/domain/1/data"], "ENOENT"],
    ["0", "", XS_READ, ["/local/domain/1/name"], "one"],
    ["0", "", XS_GET_PERMS, ["/shared"], "n0|"],
    ["0", "", xs.XS_IS_DOMAIN_INTRODUCED, ["1"], "F|"],
  ]);
  cases(
    "features and quotas",
    ["xenstored-4.22"],
    [
      ["1", "", xs.XS_GET_FEATURE, ["1"], "14|"],
      ["1", "", xs.XS_GET_FEATURE, ["2"], "EACCES"],
      ["0", "", xs.XS_GET_FEATURE, ["2"], "14|"],
      ["0", "", xs.XS_SET_FEATURE, ["2", "2"], "EBUSY"],
      ["0", "", xs.XS_SET_FEATURE, ["2"], "OK|"],
      ["0", "", xs.XS_GET_FEATURE, [], "2|"],
      ["1", "", xs.XS_GET_QUOTA, [], "EACCES"],
      ["0", "", xs.XS_GET_QUOTA, ["1", "nodes"], "1000|"],
      ["0", "", xs.XS_SET_QUOTA, ["1", "nodes", "2"], "OK|"],
      ["0", "", xs.XS_GET_QUOTA, ["1", "nodes"], "2|"],
      ["0", "", xs.XS_GET_QUOTA, ["constructor"], "EINVAL"],
      ["0", "", xs.XS_GET_QUOTA, ["nodes"], "1000|"],
    ],
  );
  cases(
    "features and quotas are unknown",
    ["xenstored-4.17", "oxenstored", "rfc-2014"],
    [
      ["0", "", xs.XS_GET_FEATURE, ["1"], "ENOSYS"],
      ["0", "", xs.XS_SET_FEATURE, ["1", "1"], "ENOSYS"],
      ["0", "", xs.XS_GET_QUOTA, [], "ENOSYS"],
      ["0", "", xs.XS_SET_QUOTA, ["nodes", "1"], "ENOSYS"],
    ],
  );
  cases("CONTROL help tells the servers apart", C, [
    ["0", "", xs.XS_CONTROL, ["help"], "Supported commands: check log print quota help|"],
  ]);
  cases("CONTROL has no help", OX, [["0", "", xs.XS_CONTROL, ["help"], "OK|"]]);
});
