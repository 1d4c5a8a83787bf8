// What a client receives, replies and events in their order, from Xen's own servers and from the embedded one with the
// personality of each: there must be no difference.
import { join } from "node:path";
import { globSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { XenstoreEndpoint } from "../../src/platform/platform.ts";
import * as xs from "../../src/protocol/xs-wire.ts";
import { openTransport } from "../../src/xenstore/open.ts";
import { XenstoreServer } from "../../src/xenstore/server/server.ts";
import type { XenstoreTransport } from "../../src/xenstore/transport.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { XenstoredHost } from "./xenstored-host.ts";

setDefaultTimeout(30_000);

const program = (name: string): string => globSync(`/usr/lib/xen-*/bin/${name}`).sort().at(-1) ?? name;
const SERVERS = [
  { personality: "xenstored-4.17", command: [program("xenstored"), "-N", "--pid-file", "/var/run/pid"] },
  { personality: "oxenstored", command: [program("oxenstored"), "--no-fork"] },
] as const;

/** A request, in the transaction that was begun last if `inTransaction`. */
interface Step {
  readonly type: number;
  readonly payload: Uint8Array;
  readonly inTransaction: boolean;
}

const ask = (type: number, ...strings: string[]): Step => ({
  type,
  payload: xs.encodeStrings(...strings),
  inTransaction: false,
});
const write = (path: string, value: string): Step => ({
  type: xs.XS_WRITE,
  payload: xs.encodePathAndValue(path, xs.encodeText(value)),
  inTransaction: false,
});
const within = (step: Step): Step => ({ ...step, inTransaction: true });
const { XS_WATCH, XS_RM, XS_READ, XS_MKDIR, XS_SET_PERMS, XS_RELEASE, XS_IS_DOMAIN_INTRODUCED } = xs;
const BEGIN = ask(xs.XS_TRANSACTION_START, "");
const COMMIT = within(ask(xs.XS_TRANSACTION_END, "T"));
const RESET = ask(xs.XS_RESET_WATCHES, "");

const CASES: readonly (readonly [string, readonly Step[]])[] = [
  [
    "a first event",
    [ask(XS_WATCH, "/t", "a"), ask(XS_WATCH, "t", "b"), ask(XS_WATCH, "@releaseDomain", "c")],
  ],
  [
    "of its own changes",
    [ask(XS_WATCH, "/t", "a"), write("/t/x", "1"), ask(XS_MKDIR, "/t/y"), ask(XS_RM, "/t/x")],
  ],
  ["of permissions", [write("/t", ""), ask(XS_WATCH, "/t", "a"), ask(XS_SET_PERMS, "/t", "n0")]],
  [
    "of a commit",
    [ask(XS_WATCH, "/t", "a"), BEGIN, within(write("/t/x", "1")), within(write("/t/y", "1")), COMMIT],
  ],
  ["of a commit that changes nothing", [ask(XS_WATCH, "/t", "a"), BEGIN, within(ask(XS_READ, "/")), COMMIT]],
  [
    "of what was there and is made anew",
    [
      write("/t/x", "0"),
      ask(XS_WATCH, "/t/x", "a"),
      BEGIN,
      within(ask(XS_RM, "/t/x")),
      within(write("/t/x", "1")),
      COMMIT,
    ],
  ],
  [
    "of what is made and removed again",
    [
      write("/t", ""),
      ask(XS_WATCH, "/t/x", "a"),
      BEGIN,
      within(write("/t/x", "1")),
      within(ask(XS_RM, "/t/x")),
      COMMIT,
    ],
  ],
  ["after a reset", [ask(XS_WATCH, "/t", "a"), RESET, write("/t", "1"), ask(XS_WATCH, "/t", "a")]],
  [
    "about domains",
    [ask(XS_RELEASE, "9"), ask(XS_IS_DOMAIN_INTRODUCED, "9"), ask(XS_IS_DOMAIN_INTRODUCED, "32752")],
  ],
];

/** All that comes for `steps`, in its order. */
async function play(endpoint: XenstoreEndpoint, steps: readonly Step[]): Promise<string[]> {
  const received: string[] = [];
  const transport: XenstoreTransport = await openTransport(endpoint, 5000);
  const parser = new xs.XsPacketParser();
  let transaction = 0;
  let answered = (): void => {};
  transport.onData = (bytes) => {
    parser.push(bytes);
    for (let packet = parser.next(); packet !== undefined; packet = parser.next()) {
      const text = xs.decodeText(packet.payload).replaceAll("\0", "|");
      const begins = packet.type === xs.XS_TRANSACTION_START;
      if (begins) transaction = Number.parseInt(text, 10);
      received.push(`${xs.xsTypeName(packet.type)} ${begins ? "ID" : text}`);
      if (packet.type !== xs.XS_WATCH_EVENT) answered();
    }
  };
  const last = ask(xs.XS_GET_DOMAIN_PATH, "0"); // what was sent before its answer has come then
  for (const { type, payload, inTransaction } of [...steps, last]) {
    const { promise, resolve } = Promise.withResolvers<void>();
    answered = resolve;
    transport.write(xs.encodePacket(type, 1, inTransaction ? transaction : 0, payload));
    await promise;
  }
  transport.close();
  return received;
}

describe.each(SERVERS)("$personality", ({ personality, command }) => {
  let real: XenstoredHost;
  let dir: string;
  let server: XenstoreServer;

  beforeEach(async () => {
    real = await XenstoredHost.start(command);
    dir = temporaryDirectory();
    server = new XenstoreServer({ personality });
    await server.listen(join(dir, "socket"), 0);
  });
  afterEach(async () => {
    server.close();
    removeDirectory(dir);
    await real.close();
  });

  test.each(CASES)("%s", async (_what, steps) => {
    const ours = await play({ kind: "socket", path: join(dir, "socket") }, steps);
    expect(ours).toEqual(await play(real.socket, steps));
  });

  test("a transaction of before a reset is over", async () => {
    for (const endpoint of [real.socket, { kind: "socket", path: join(dir, "socket") } as const]) {
      const [, , first, second] = await play(endpoint, [BEGIN, RESET, within(ask(XS_READ, "/")), COMMIT]);
      expect([first, second]).toEqual([expect.stringMatching(/^ERROR /), expect.stringMatching(/^ERROR /)]);
    }
  });
});
