// Everything that a look at a ring page shows, also as plain data for JSON.
import { readContent, typeText, type XsHeader } from "../protocol/xs-content.ts";
import {
  copyRingAtRest,
  isAtRest,
  loadRingWords,
  viewRequests,
  viewResponses,
  type Poison,
  type RingCopy,
  type RingFragment,
  type RingPacket,
  type RingStreamView,
  type RingWords,
} from "../protocol/xs-ring-view.ts";
import type { XsRingPage } from "../protocol/xs-ring.ts";
import { SETTLE_LOOK_MS } from "./bounds.ts";
import { pairUp, type Exchange } from "./exchanges.ts";
import { connectionName, errorName, featureNames, judge, type Verdict } from "./verdict.ts";

/** Which description of the page the server follows, as far as it shows. */
export type RingGeneration = "current" | "rfc-2014" | "unknown";

export interface RingReport {
  readonly words: RingWords;
  readonly generation: RingGeneration;
  /** Whether nothing moved while the page was copied. */
  readonly atRest: boolean;
  readonly requests: RingStreamView;
  readonly responses: RingStreamView;
  /** What was consumed and can still be read, paired, oldest first. */
  readonly history: readonly Exchange[];
  readonly verdict: Verdict;
}

/** A report on a copy of a page. It accepts any bytes and never throws. */
function reportOn(copy: RingCopy): RingReport {
  const requests = viewRequests(copy);
  const responses = viewResponses(copy);
  return {
    words: copy.words,
    generation: generationOf(copy.words, requests.poison ?? responses.poison),
    atRest: isAtRest(copy),
    requests,
    responses,
    history: pairUp(requests.consumed, responses.consumed),
    verdict: judge(copy.words, requests, responses),
  };
}

/** A report on a live page. */
export function inspectRing(page: XsRingPage): RingReport {
  return reportOn(copyRingAtRest(page));
}

/**
 * A report on a live page that distinguishes a ring where somebody is stuck from one that is merely in use. While
 * somebody waits it looks again, for up to `settleMs`; a ring that moves on is healthy.
 */
export async function inspectSettled(page: XsRingPage, settleMs: number): Promise<RingReport> {
  const first = inspectRing(page);
  const deadline = performance.now() + settleMs;
  while (first.verdict.code !== "healthy" && performance.now() < deadline) {
    await Bun.sleep(SETTLE_LOOK_MS);
    if (hasMoved(page, first)) return asBusy(inspectRing(page));
  }
  return first;
}

function asBusy(report: RingReport): RingReport {
  const { code } = report.verdict;
  if (code === "corrupt" || code === "reconnect-pending") return report;
  return { ...report, verdict: { code: "healthy", text: "healthy: busy, what waited has moved on" } };
}

function hasMoved(page: XsRingPage, { words }: RingReport): boolean {
  const now = loadRingWords(page);
  return (["reqCons", "reqProd", "rspCons", "rspProd", "connection"] as const).some(
    (name) => now[name] !== words[name],
  );
}

/** The layouts are the same. Only the poison, and values that one of them does not have, tell them apart. */
function generationOf(words: RingWords, poison: Poison | undefined): RingGeneration {
  if (poison === "deadbeef") return "rfc-2014";
  if (poison === "0xff" || words.serverFeatures > 1 || words.error !== 0 || words.evtchnPort !== 0)
    return "current";
  return "unknown";
}

/** The report with stable field names. Strings are bytes, one character each (ISO 8859-1). */
export function reportAsJson(report: RingReport): Record<string, unknown> {
  const { words, verdict } = report;
  return {
    verdict: verdict.code,
    summary: verdict.text,
    generation: report.generation,
    atRest: report.atRest,
    serverFeatures: { value: words.serverFeatures, names: featureNames(words.serverFeatures) },
    connection: { value: words.connection, name: connectionName(words.connection) },
    error: { value: words.error, name: errorName(words.error) },
    evtchnPort: words.evtchnPort,
    requests: streamAsJson(report.requests),
    responses: streamAsJson(report.responses),
    history: report.history.map(({ request, reply }) => ({
      request: request === undefined ? null : packetAsJson("request", request),
      reply: reply === undefined ? null : packetAsJson("response", reply),
    })),
  };
}

function streamAsJson(stream: RingStreamView): Record<string, unknown> {
  const { direction, cons, prod, usedBytes, poison, violation, atBoundary } = stream;
  const fragment = (it: RingFragment | undefined): unknown =>
    it === undefined ? null : { ...fragmentAsJson(it), ...contentOf(direction, it.header, it.payload) };
  return {
    cons,
    prod,
    usedBytes: usedBytes ?? null,
    poison: poison ?? null,
    atBoundary: atBoundary ?? null,
    crossing: fragment(stream.crossing),
    waiting: stream.waiting.map((packet) => packetAsJson(direction, packet)),
    partial: fragment(stream.partial),
    violation: violation ?? null,
  };
}

function fragmentAsJson({ at, header, producedBytes, takenBytes }: RingFragment): Record<string, unknown> {
  return { at, producedBytes, takenBytes, sizeBytes: header === undefined ? null : 16 + header.length };
}

function packetAsJson(
  direction: RingStreamView["direction"],
  { at, header, payload }: RingPacket,
): Record<string, unknown> {
  return { at, ...contentOf(direction, header, payload) };
}

/** A packet's header and payload with stable field names; `xsring trace` prints the same. */
export function contentOf(
  direction: RingStreamView["direction"],
  header: XsHeader | undefined,
  payload: Uint8Array,
): Record<string, unknown> {
  if (header === undefined) return { type: null };
  const { path, values } = readContent(direction, header.type, payload);
  return {
    type: typeText(header.type),
    reqId: header.reqId,
    txId: header.txId,
    payloadBytes: header.length,
    ...(path === undefined ? {} : { path }),
    values,
  };
}
