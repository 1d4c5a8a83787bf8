// Decides what closing a ring would take, before anything is touched. Only a server that offers RECONNECTION supports
// the guest's own way to close. The other methods cost more, and are refused unless asked for.
import { XentoolError } from "../core/errors.ts";
import { XENSTORE_CONNECTED, XENSTORE_RECONNECT } from "../protocol/xs-ring.ts";
import { unansweredRequest } from "./exchanges.ts";
import type { RingReport } from "./report.ts";
import { canReconnect } from "./verdict.ts";

/**
 * handshake: `connection` = RECONNECT, which the server acknowledges. reintroduce: a second XS_INTRODUCE, which C
 * xenstored since 4.17 takes as a new start. release: XS_RELEASE, then XS_INTRODUCE. poison: hvmloader's fallback,
 * which the server does not notice.
 */
export const CLOSE_METHODS = ["handshake", "reintroduce", "release", "poison"] as const;
export type CloseMethod = (typeof CLOSE_METHODS)[number];

/** Who serves the ring, as far as we can tell without changing anything. */
export interface ServerIdentity {
  readonly kind: "reconnecting" | "xenstored" | "unknown";
  /** What was observed, for messages. */
  readonly evidence: string;
}

export interface CloseRequest {
  readonly domid: number;
  /** Undefined: the handshake, or a refusal. */
  readonly method: CloseMethod | undefined;
  /** Allows methods that destroy state which cannot be restored. */
  readonly force: boolean;
  /** The ring is this domain's own: there is no toolstack to ask. */
  readonly isSelf: boolean;
}

export interface ClosePlan {
  readonly method: CloseMethod;
  readonly destructive: boolean;
  /** What will be done, in order. */
  readonly steps: readonly string[];
  /** The consequences for the guest. */
  readonly risks: readonly string[];
}

const DESTRUCTIVE: ReadonlySet<CloseMethod> = new Set(["release", "poison"]);

/**
 * Decides how to close the ring. Fails with `protocol` when that method cannot be used; the message has the reason
 * and the remaining methods.
 */
export function planClose(report: RingReport, server: ServerIdentity, request: CloseRequest): ClosePlan {
  const method = request.method ?? "handshake";
  const obstacle = obstacleTo(method, report, server, request);
  if (obstacle !== undefined) throw refusal(method, obstacle, report, server, request);
  return { method, destructive: DESTRUCTIVE.has(method), ...describe(method, report, request) };
}

function refusal(
  method: CloseMethod,
  obstacle: string,
  report: RingReport,
  server: ServerIdentity,
  request: CloseRequest,
): XentoolError {
  const others = CLOSE_METHODS.filter(
    (other) =>
      other !== method && obstacleTo(other, report, server, { ...request, force: true }) === undefined,
  );
  const option = (other: CloseMethod): string =>
    `--method ${other}${DESTRUCTIVE.has(other) ? " --force" : ""}`;
  const offer =
    others.length === 0
      ? "nothing else can be done either"
      : `what is left: ${others.map(option).join(", or ")} (see --dry-run)`;
  const text = `the ring of domain ${request.domid} is not closed by ${method}: ${obstacle}; ${offer}`;
  return new XentoolError("protocol", text, { domid: request.domid, method });
}

/** Why `method` cannot or must not be used; undefined when it can. */
function obstacleTo(
  method: CloseMethod,
  report: RingReport,
  server: ServerIdentity,
  request: CloseRequest,
): string | undefined {
  switch (method) {
    case "handshake":
      return obstacleToHandshake(report, server);
    case "reintroduce":
      return request.isSelf ? "only the toolstack's domain can" : obstacleToReintroduction(report, server);
    case "release":
      if (request.isSelf) return "only the toolstack's domain can";
      return request.force ? undefined : "it deletes every node that the guest owns: only with --force";
    case "poison":
      return (
        obstacleToPoison(report) ??
        (request.force
          ? undefined
          : "the server does not learn of it, and may write at the same time: only with --force")
      );
  }
}

/** Nobody serves an ignored ring, and poison would only make it look sound. */
function obstacleToPoison(report: RingReport): string | undefined {
  if (isDeaf(report))
    return `it does not end the ignoring of a ring (${report.verdict.text.replace(/^corrupt: /, "")})`;
  if (report.words.connection !== XENSTORE_CONNECTED && canReconnect(report.words))
    return "the server is about to give it the new start that was asked for, and would do so at the same time";
  return undefined;
}

function isDeaf(report: RingReport): boolean {
  return (
    report.words.error !== 0 ||
    report.requests.usedBytes === undefined ||
    report.responses.usedBytes === undefined
  );
}

function obstacleToHandshake(report: RingReport, server: ServerIdentity): string | undefined {
  if (!canReconnect(report.words))
    return `this server ignores a guest's wish for a new start (server_features ${report.words.serverFeatures} is without RECONNECTION; ${server.evidence})`;
  if (isDeaf(report))
    return `a server ignores such a ring for good (${report.verdict.text.replace(/^corrupt: /, "")})`;
  return undefined;
}

/** C xenstored frees a half-read request and keeps using it (a bug since 2016), so no request may be in progress. */
function obstacleToReintroduction(report: RingReport, server: ServerIdentity): string | undefined {
  if (server.kind !== "xenstored")
    return `only C xenstored takes a second INTRODUCE as a new start (${server.evidence})`;
  if (isDeaf(report))
    return `a second INTRODUCE does not end the ignoring of a ring (${report.verdict.text.replace(/^corrupt: /, "")})`;
  const { requests, responses } = report;
  if (requests.usedBytes !== 0 || responses.usedBytes !== 0 || requests.violation !== undefined)
    return "requests or responses are under way";
  if (requests.crossing !== undefined)
    return "the server has read a request half, and would use it after freeing it";
  // Its indices were zeroed without the server, as by hvmloader.
  const wasPoisoned = requests.prod === 0 && requests.poison === "0xff";
  if (wasPoisoned || requests.atBoundary !== true || responses.crossing !== undefined)
    return "it cannot be seen whether the server has read a request half, which it would use after freeing it";
  if (unansweredRequest(requests, responses) !== undefined) return "a request has not been answered";
  return undefined;
}

type Description = Pick<ClosePlan, "steps" | "risks">;

function describe(method: CloseMethod, report: RingReport, request: CloseRequest): Description {
  const pause = "pause the guest, where the platform can";
  const forgotten =
    "the server forgets the guest's watches, transactions and unread requests; a kernel that still runs there keeps waiting for them";
  switch (method) {
    case "handshake":
      return describeHandshake(report, request, forgotten);
    case "reintroduce":
      return {
        steps: [
          `${pause}, and look at the ring again`,
          "set connection to RECONNECT",
          "XS_INTRODUCE with the frame and port of ~/store: the server zeroes the indices and sets connection back",
          "check the ring, and let the guest run",
        ],
        risks: [forgotten],
      };
    case "release":
      return {
        steps: [
          pause,
          "XS_RELEASE: the server drops the domain",
          "zero the indices, connection and error, poison both streams with 0xff",
          "XS_INTRODUCE with the frame and port of ~/store, check the ring, and let the guest run",
        ],
        risks: [
          "every node that the guest owns is deleted (device/*, data/*, ...), its devices may be torn down",
          "it may not read any more what it was let read, not even its own domid: the server takes it for another domain",
          "@releaseDomain and @introduceDomain fire: daemons see the domain go and come",
          forgotten,
        ],
      };
    case "poison":
      return {
        steps: [
          ...(request.isSelf ? [] : [pause]),
          "fill both streams with 0xff, then zero the four indices and connection",
        ],
        risks: [
          "the server is not told: if it reads or writes at that moment, the ring is corrupt",
          "the guest's watches and transactions stay, a request that is half read stays half read",
        ],
      };
  }
}

function describeHandshake(report: RingReport, request: CloseRequest, forgotten: string): Description {
  const pending = report.words.connection === XENSTORE_RECONNECT;
  return {
    steps: [
      pending ? "the guest has asked already: connection is RECONNECT" : "set connection to RECONNECT",
      request.isSelf
        ? "notify the server"
        : "have the server touch the ring: rewrite a node that the guest watches",
      "wait until the server has set it back to CONNECTED, and check the ring",
    ],
    risks: [
      ...(request.isSelf
        ? []
        : ["by the protocol only the guest may set connection: it must not use the ring now"]),
      forgotten,
    ],
  };
}
