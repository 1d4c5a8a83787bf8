// Pages made by a C program, in every state that a ring can be in: what inspect sees there is written down
// here by hand. The drawing of one is compared whole.
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import * as layout from "../../src/protocol/xs-ring.ts";
import { drawRing } from "../../src/xsring/drawing.ts";
import { inspectRing, reportAsJson, type RingReport } from "../../src/xsring/report.ts";
import { parseRingPage, readRingFile } from "../../src/xsring/source.ts";
import { VERDICT_STATUS, type VerdictCode } from "../../src/xsring/verdict.ts";
import { testProgram } from "../sim/xsring-harness.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const program = testProgram("ring_pages");

function page(state: string): Uint8Array {
  const made = Bun.spawnSync([program, state]);
  expect(made.exitCode).toBe(0);
  return made.stdout;
}

function inspect(state: string): RingReport {
  return inspectRing(parseRingPage(page(state)));
}

/** The exchanges as `id TYPE path = value`. */
function history(report: RingReport): string[] {
  const { history: exchanges } = reportAsJson(report) as {
    history: Record<
      "request" | "reply",
      { type: string; reqId: number; path?: string; values: string[] } | null
    >[];
  };
  return exchanges.map(({ request, reply }) =>
    [
      request === null ? "-" : `${request.reqId} ${request.type} ${request.path}`,
      reply === null ? "-" : `${reply.type} ${reply.values.join("|")}`,
    ].join(" = "),
  );
}

const DOMID = "1 READ domid = READ 7";

test.each<[string, VerdictCode, string, string[]]>([
  ["unused", "healthy", "healthy: not used yet", []],
  ["idle", "healthy", "healthy: idle", [DOMID, "2 READ name = READ guest"]],
  ["guest-waits", "guest-waits", "guest waits for the server: 51 bytes not read", [DOMID]],
  [
    "unanswered",
    "guest-waits",
    "guest waits for the server: READ 2 was taken and not answered",
    [DOMID, "2 READ name = -"],
  ],
  [
    "server-waits",
    "server-waits",
    "server waits for the guest: 52 bytes not read",
    [DOMID, "2 READ nothing = -"],
  ],
  ["half-request", "guest-waits", "guest waits for the server: 100 bytes not read", [DOMID]],
  [
    "half-request-taken",
    "server-waits",
    "server waits for the guest: the rest of a request (WRITE) has not come, 27 of 4016 bytes have",
    [DOMID],
  ],
  ["half-header", "guest-waits", "guest waits for the server: 5 bytes not read", [DOMID]],
  ["full", "server-waits", "server waits for the guest: 1024 bytes not read", []],
  ["wrapped", "guest-waits", "guest waits for the server: 21 bytes not read", []],
  ["reset-0xff", "healthy", "healthy: closed and not used since", []],
  ["reset-deadbeef", "healthy", "healthy: closed and not used since", []],
  ["used-after-reset", "healthy", "healthy: idle", ["0 READ domid = READ 7"]],
  [
    "reads-poison",
    "corrupt",
    "corrupt: poison (0xff) where a packet should begin, at index 0 of the requests",
    [],
  ],
  [
    "reconnect",
    "reconnect-pending",
    "reconnect pending: the guest asked for a new start; the server has not answered yet",
    [DOMID],
  ],
  [
    "reconnect-in-vain",
    "reconnect-pending",
    "reconnect pending: the guest asked for a new start, which this server does not offer: it will not answer",
    [DOMID],
  ],
  ["bad-request-index", "corrupt", "corrupt: the request indices are 1025 apart, above 1024", []],
  [
    "bad-response-index",
    "corrupt",
    "corrupt: the response indices are 4294967295 apart, above 1024",
    ["1 READ domid = -"],
  ],
  [
    "too-long",
    "corrupt",
    "corrupt: a packet (WRITE) that announces 4097 bytes, above 4096, at index 22 of the requests",
    [DOMID],
  ],
  ["unknown-type", "corrupt", "corrupt: a packet of unknown type 99, at index 22 of the requests", [DOMID]],
  ["error-word", "corrupt", "corrupt: the server reports error 2 (RINGIDX) and ignores the ring", [DOMID]],
  ["bad-connection", "corrupt", "corrupt: the connection word is 77, which means nothing", [DOMID]],
  [
    "hvmloader",
    "healthy",
    "healthy: idle",
    ["0 READ domid = READ 7", "0 READ hvmloader/bios = READ seabios", "0 READ platform/acpi = ERROR ENOENT"],
  ],
])("%s", (state, code, text, exchanges) => {
  const report = inspect(state);
  expect(report.verdict).toEqual({ code, text });
  expect(history(report)).toEqual(exchanges);
  expect(report.atRest).toBe(true);
});

test("the page's words lie where a C compiler puts them", () => {
  const probe = Bun.spawnSync([testProgram("layout_probe", ".")]);
  const offsets = JSON.parse(probe.stdout.toString()) as Record<string, number>;
  const field = (name: string): number | undefined => offsets[`struct xenstore_domain_interface.${name}`];
  expect(
    [
      "req_cons",
      "req_prod",
      "rsp_cons",
      "rsp_prod",
      "server_features",
      "connection",
      "error",
      "evtchn_port",
    ].map(field),
  ).toEqual([
    layout.XS_RING_REQ_CONS,
    layout.XS_RING_REQ_PROD,
    layout.XS_RING_RSP_CONS,
    layout.XS_RING_RSP_PROD,
    layout.XS_RING_SERVER_FEATURES,
    layout.XS_RING_CONNECTION,
    layout.XS_RING_ERROR,
    layout.XS_RING_EVTCHN_PORT,
  ]);
  expect([field("req"), field("rsp")]).toEqual([0, layout.XS_RING_BYTES]);
});

test("every verdict has its own exit status", () => {
  expect(VERDICT_STATUS).toEqual({
    healthy: 0,
    corrupt: 4,
    "guest-waits": 10,
    "server-waits": 11,
    "reconnect-pending": 12,
  });
});

test("a history of 500 exchanges: all that a ring still holds, none of it guessed", () => {
  const exchanges = history(inspect("long-history"));
  // 32 bytes a request, so 32 of them; the replies are longer, so that fewer are left.
  expect(exchanges.length).toBe(32);
  expect(exchanges.at(-1)).toBe(`499 READ data/some/where = READ ${"f".repeat(20)}`);
  const replies = exchanges.filter((line) => !line.endsWith("= -"));
  for (const line of replies) {
    const id = Number(line.split(" ")[0]);
    const letter = String.fromCharCode(97 + (id % 26));
    expect(line).toBe(`${id} READ data/some/where = READ ${letter.repeat((id % 40) + 1)}`);
  }
  expect(replies.length).toBeGreaterThan(20);
});

test.each([
  ["unused", "unknown", "zeroes"],
  ["reset-0xff", "current", "0xff"],
  ["reset-deadbeef", "rfc-2014", "deadbeef"],
  ["used-after-reset", "rfc-2014", "deadbeef"],
  ["error-word", "current", "zeroes"],
  ["full", "unknown", undefined],
] as const)("%s: generation %s, poison %s", (state, generation, poison) => {
  const report = inspect(state);
  expect(report.generation).toBe(generation);
  expect(report.requests.poison).toBe(poison);
});

test("what is half there and half taken", () => {
  const { requests } = inspect("half-request");
  expect(requests.crossing).toMatchObject({ at: 22, producedBytes: 300, takenBytes: 200 });
  expect(requests.atBoundary).toBe(false);
  expect(inspect("half-header").requests.partial).toMatchObject({
    at: 22,
    producedBytes: 5,
    header: undefined,
  });
});

test("the drawing", () => {
  const lines = drawRing(inspect("guest-waits"), { title: "domain 5", historyMax: 16 });
  expect(`\n${lines.join("\n")}\n`).toBe(String.raw`
domain 5: guest waits for the server: 51 bytes not read
  server_features 0   connection 0 (CONNECTED)   error 0 (none)

  requests   guest -> server                   51 of 1024 bytes wait
  +----------------------------------------------------------------+
  |.####                                                           |
  +-^--^-----------------------------------------------------------+
       req_prod 73
    req_cons 22
   free part: zeroes, never written
   waits: #2 READ("name"), 21 bytes
   waits: #3 WRITE("data/x", "v\x1b[31m\x80"), 30 bytes

  responses  server -> guest                    0 of 1024 bytes wait
  +----------------------------------------------------------------+
  |..                                                              |
  +-^--------------------------------------------------------------+
    rsp_cons 17
    rsp_prod 17
   free part: zeroes, never written

  history, newest last:
   #1 READ("domid") = "7"
`);
});

test("the drawing for a narrow terminal has half as many cells", () => {
  const lines = drawRing(inspect("guest-waits"), { title: "domain 5", historyMax: 0, width: 40 });
  expect(`\n${lines.slice(3, 9).join("\n")}\n`).toBe(String.raw`
  requests   guest -> server
  51 of 1024 bytes wait
  +--------------------------------+
  |###                             |
  +^-^-----------------------------+
     req_prod 73
`);
  const wide = drawRing(inspect("guest-waits"), { title: "domain 5", historyMax: 0, width: 68 });
  expect(wide).toEqual(drawRing(inspect("guest-waits"), { title: "domain 5", historyMax: 0 }));
});

describe("a page comes", () => {
  const raw = page("server-waits");
  /** Lines of 16 bytes as a dump has them; the second of equal lines is `*`, the others are left out. */
  const dump = (format: (offset: string, hex: string[], text: string) => string, last = ""): Uint8Array => {
    const rows = Array.from({ length: 256 }, (_, row) => Buffer.from(raw.subarray(row * 16, row * 16 + 16)));
    const lines = rows.map((row, at) => {
      if (at > 0 && row.equals(rows[at - 1])) return "*";
      const text = row.toString("latin1").replaceAll(/[^ -~]/g, ".");
      return format((at * 16).toString(16), row.toString("hex").match(/../g) ?? [], text);
    });
    return Buffer.from(
      `${lines.filter((line, at) => line !== "*" || lines[at - 1] !== "*").join("\n")}\n${last}`,
    );
  };
  const pairs = (hex: string[]): string => hex.join("").replaceAll(/(.{4})(?=.)/g, "$1 ");

  test.each([
    ["raw", () => raw],
    ["as of xxd -a", () => dump((at, hex, text) => `${at.padStart(8, "0")}: ${pairs(hex)}  ${text}`)],
    [
      "as of xxd -p",
      () =>
        Buffer.from(
          Buffer.from(raw)
            .toString("hex")
            .replaceAll(/(.{60})/g, "$1\n"),
        ),
    ],
    [
      "as of hexdump -C",
      () =>
        dump(
          (at, hex, text) =>
            `${at.padStart(8, "0")}  ${hex.slice(0, 8).join(" ")}  ${hex.slice(8).join(" ")}  |${text}|`,
          "00001000\n",
        ),
    ],
    ["as of od -A x -t x1", () => dump((at, hex) => `${at.padStart(6, "0")} ${hex.join(" ")}`, "001000\n")],
    ["cut after its fields", () => raw.subarray(0, 2080)],
  ])("%s", (_name, make) => {
    expect(Buffer.compare(parseRingPage(make()).bytes, raw)).toBe(0);
  });

  test.each([
    ["empty", new Uint8Array(0)],
    ["too short", raw.subarray(0, 2079)],
    ["too long", new Uint8Array(4097)],
    ["text", Buffer.from("a page\n".repeat(600))],
    ["hexadecimal of half a page", Buffer.from("00".repeat(1000))],
    ["a dump that goes back", Buffer.from("00000010: 00\n00000000: 00\n")],
    ["a dump beyond the page", Buffer.from("fffffff0: 00\n")],
  ])("not when it is %s", (_name, bytes) => {
    expect(() => parseRingPage(bytes)).toThrow(/a ring page has 2080 to 4096 bytes/);
  });

  test("from a file, not from one that is missing or endless", async () => {
    const dir = temporaryDirectory();
    const path = join(dir, "page");
    await Bun.write(path, raw);
    expect(Buffer.compare((await readRingFile(path)).bytes, raw)).toBe(0);
    expect(await readRingFile(join(dir, "none")).catch((error: unknown) => error)).toMatchObject({
      kind: "io",
    });
    await Bun.write(path, new Uint8Array(70_000));
    expect(await readRingFile(path).catch((error: unknown) => error)).toMatchObject({ kind: "usage" });
    removeDirectory(dir);
  });
});
