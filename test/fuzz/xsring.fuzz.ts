// Random and half-valid ring pages, as drawings, as JSON, and followed from page to page as a trace: nothing
// crashes, nothing hangs, no control character gets out, and the numbers that are shown add up.
import { XentoolError } from "../../src/core/errors.ts";
import { copyRing } from "../../src/protocol/xs-ring-view.ts";
import type { XsRingPage } from "../../src/protocol/xs-ring.ts";
import { encodePacket, encodeText } from "../../src/protocol/xs-wire.ts";
import { asciiJson } from "../../src/xsring/ascii-json.ts";
import { drawRing } from "../../src/xsring/drawing.ts";
import { inspectRing, reportAsJson } from "../../src/xsring/report.ts";
import { RingFollower } from "../../src/xsring/ring-follower.ts";
import { TraceEvents } from "../../src/xsring/trace-events.ts";
import { encodeTraceRecord, readTrace, traceFileHeader } from "../../src/xsring/trace-file.ts";
import { eventAsJson, eventText } from "../../src/xsring/trace-text.ts";
import { planClose } from "../../src/xsring/close-plan.ts";
import { CLOSE_METHODS } from "../../src/xsring/close-plan.ts";
import { wholeNumbers, type WholeNumbers } from "../support/random.ts";

const PATHS = ["name", "/local/domain/1/device/vbd/51712/state", "data/x", "@releaseDomain", "", "\x1b[2J"];
const REPLIES = ["OK\0", "ENOENT\0", "7", "a\0b\0c\0", "", "\x9b31m\x07"];
const EDGES = [
  0, 1, 15, 16, 1023, 1024, 1025, 2048, 4096, 0x7fff_ffff, 0x8000_0000, 0xffff_fff0, 0xffff_ffff,
];

function packet(random: WholeNumbers): Uint8Array {
  const type = random(8) === 0 ? random(0xffff) : random(27);
  const text =
    random(2) === 0
      ? `${PATHS[random(PATHS.length)]}\0${REPLIES[random(REPLIES.length)]}`
      : REPLIES[random(REPLIES.length)];
  const payload = random(6) === 0 ? new Uint8Array(random(4200)).fill(random(256)) : encodeText(text);
  const bytes = encodePacket(type, random(4), random(3), payload);
  if (random(10) === 0) bytes[12 + random(4)] = random(256);
  return bytes;
}

function fillStream(random: WholeNumbers, data: Uint8Array): void {
  const kind = random(8);
  if (kind === 0) for (let at = 0; at < data.length; at++) data[at] = random(256);
  else if (kind === 1) data.fill([0, 0xff, 1, 0x61][random(4)]);
  else if (kind === 2) data.set(encodeText("deadbeef".repeat(data.length / 8)));
  else for (let at = random(40); at < data.length;) at = put(data, at, packet(random));
  for (let flips = random(3) === 0 ? random(20) : 0; flips > 0; flips--)
    data[random(data.length)] = random(256);
}

/** Puts `bytes` around the ring and answers where they end. */
function put(data: Uint8Array, start: number, bytes: Uint8Array): number {
  for (const [offset, byte] of bytes.subarray(0, data.length).entries())
    data[(start + offset) % data.length] = byte;
  return start + bytes.length;
}

function index(random: WholeNumbers, near: number): number {
  const kind = random(6);
  if (kind === 0) return EDGES[random(EDGES.length)];
  if (kind === 1) return random(0x1_0000_0000);
  return (near + random(1100)) >>> 0;
}

function mutate(random: WholeNumbers, page: XsRingPage): void {
  if (random(3) > 0) fillStream(random, page.bytes.subarray(0, 1024));
  if (random(3) > 0) fillStream(random, page.bytes.subarray(1024, 2048));
  for (const word of [512, 514]) {
    const cons = index(random, page.words[word]);
    page.words[word] = cons;
    page.words[word + 1] = index(random, cons);
  }
  for (const word of [516, 517, 518, 519])
    page.words[word] = random(4) === 0 ? random(0x1_0000_0000) : random(3);
}

const RAW = /[^\x20-\x7e]/;

function expectPrintable(text: string, what: string): void {
  if (RAW.test(text)) throw new Error(`${what} has a raw character: ${JSON.stringify(text)}`);
}

/** One page looked at in every way; `follower` goes on from the page before. */
function look(
  random: WholeNumbers,
  page: XsRingPage,
  follower: RingFollower,
  events: TraceEvents,
  at: number,
): void {
  const report = inspectRing(page);
  for (const line of drawRing(report, { title: "page", historyMax: 100 }))
    expectPrintable(line, "the drawing");
  expectPrintable(asciiJson(reportAsJson(report)), "the JSON");
  for (const stream of [report.requests, report.responses]) {
    const bytes = stream.waiting.reduce((sum, { payload }) => sum + 16 + payload.length, 0);
    if (bytes > (stream.usedBytes ?? 0)) throw new Error("more waits than there is");
  }
  if (at % 16 === 0) for (const method of CLOSE_METHODS) tryPlan(random, report, method);
  for (const record of follower.look(copyRing(page), at)) {
    events.push(record);
    if (encodeTraceRecord(record, 1).length > 8192) throw new Error("a record is longer than a packet");
  }
}

function tryPlan(
  random: WholeNumbers,
  report: ReturnType<typeof inspectRing>,
  method: (typeof CLOSE_METHODS)[number],
): void {
  const server = {
    kind: (["reconnecting", "xenstored", "unknown"] as const)[random(3)] ?? "unknown",
    evidence: "none",
  };
  try {
    planClose(report, server, { domid: 1, method, force: random(2) === 0, isSelf: random(2) === 0 });
  } catch (error) {
    if (!(error instanceof XentoolError) || error.kind !== "protocol") throw error;
    expectPrintable(error.message, "the refusal");
  }
}

/** A damaged file of a trace gives records, or one of our errors. */
async function readDamaged(random: WholeNumbers): Promise<void> {
  const record = { timeUs: random(1e9), kind: "lost", direction: "request", bytes: random(1e6) } as const;
  const bytes = Buffer.concat([
    traceFileHeader(),
    ...Array.from({ length: 4 }, () => encodeTraceRecord(record, 1)),
  ]);
  for (let flips = random(6); flips > 0; flips--) bytes[random(bytes.length)] = random(256);
  const cut = bytes.subarray(0, random(bytes.length + 1));
  const pieces = (async function* () {
    for (let at = 0; at < cut.length; at += 7) yield cut.subarray(at, at + 7);
  })();
  try {
    for await (const { record: read } of readTrace(pieces))
      if (read.timeUs < 0) throw new Error("before 1970");
  } catch (error) {
    if (!(error instanceof XentoolError) || (error.kind !== "usage" && error.kind !== "io")) throw error;
  }
}

/** Looks at `cases` pages. What it throws names the seed and the case. */
export async function run(cases: number, seed: number): Promise<void> {
  const buffer = new ArrayBuffer(4096);
  const page = { bytes: new Uint8Array(buffer), words: new Uint32Array(buffer) };
  const follower = new RingFollower(copyRing(page), 0);
  const events = new TraceEvents({ types: undefined, path: undefined }, (event) => {
    expectPrintable(eventText(event, 64) ?? "", "the trace");
    expectPrintable(asciiJson(eventAsJson(event) ?? {}), "the trace's JSON");
  });
  for (let at = 0; at < cases; at++) {
    // Each case of its own seed: a failure is reproduced without the cases before it, but for the follower.
    const random = wholeNumbers(seed + at);
    try {
      mutate(random, page);
      look(random, page, follower, events, at);
      if (at % 64 === 0) await readDamaged(random);
    } catch (error) {
      throw new Error(`xsring: case ${at} of SEED=${seed} failed`, { cause: error });
    }
  }
}
