// Relays for one peer, or for one peer after another: what `xentool vchan listen` and `connect` do. Each session has
// its own local end, and a summary when it is over.
import { endsWithin, unlessAborted } from "../core/deadline.ts";
import { describeError, XentoolError } from "../core/errors.ts";
import { addressesOf } from "../core/host-names.ts";
import { moduleLogger } from "../core/log.ts";
import { errnoName } from "../native/shim.ts";
import type { Domid } from "../core/types.ts";
import type { VchanOrders } from "../protocol/vchan.ts";
import { COMMAND_EXIT_MS, LINGER_MS, STOP_GRACE_MS } from "./bounds.ts";
import type { VchanCounts, VchanRole } from "./endpoint.ts";
import {
  describeSpec,
  openCommand,
  openConnection,
  openListener,
  openStdio,
  socketEnd,
  type LocalSpec,
  type OpenedLocal,
} from "./local.ts";
import { Pace } from "./pace.ts";
import type { RelayEnd, RelayResult } from "./relay.ts";
import { VchanSession, type VchanConnection, type VchanSessionOptions } from "./session.ts";
import type { VchanOrder } from "./vchan-orders.ts";
import { counted } from "../core/counted.ts";

/** What became of one peer. The names are stable, for JSON. */
export interface SessionSummary {
  readonly role: VchanRole;
  readonly domid: number;
  readonly path: string;
  readonly end: RelayEnd;
  readonly bytesSent: number;
  readonly bytesReceived: number;
  /** Given to the vchan but not read by the peer before it closed. */
  readonly bytesUnread: number;
  /** Received from the peer but not taken by the local end. */
  readonly bytesUndelivered: number;
  readonly seconds: number;
  readonly readSize: number;
  readonly writeSize: number;
  readonly eventsSent: number;
  readonly eventsReceived: number;
  /** Exit status of the command, when the local end was one. */
  readonly commandStatus?: number;
  /** Why the session failed, if it did. */
  readonly error?: string;
}

export interface RelaySessionOptions extends VchanSessionOptions {
  readonly local: LocalSpec;
  /** Serves one peer after another, until stopped. */
  readonly keep: boolean;
  readonly lingerMs?: number | undefined;
  readonly sendOnly: boolean;
  /** Gives up what is not needed any more, before there is a peer. */
  readonly enterJail?: (() => void) | undefined;
  /** Runs when a relay begins. The function it returns runs when the relay has ended. */
  readonly onRelay?: (counts: () => VchanCounts) => () => void;
  readonly onSummary?: (summary: SessionSummary) => void;
}

interface RelayOutcome {
  readonly summary: SessionSummary;
  /** Exit status of the session's command; 0 without one, or when we made it end. */
  readonly status: number;
  /** Nobody reads our standard output any more, so there is nothing that a further session could be for. */
  readonly isLast: boolean;
}

const log = moduleLogger("vchan");

/**
 * Serves clients. Resolves when it is over or stopped, to the exit status of the one session's command (0 if there
 * was none, or if it had to be killed). Fails with what went wrong in the one session; with `keep`, only with what
 * makes further sessions impossible.
 */
export async function listenAndRelay(options: RelaySessionOptions, orders: VchanOrders): Promise<number> {
  const { signal, local, keep } = options;
  await using session = await VchanSession.open(options, "server");
  if (options.enterJail !== undefined) await unlessAborted(findService(local), signal);
  options.enterJail?.();
  // Pause only after a client has come: until then the vchan stays available to whoever looks for it.
  return await repeat(options, (pace, attempt) => {
    const serve = async (vchan: VchanConnection): Promise<RelayOutcome | undefined> => {
      attempt.hasCome = attempt.hasPaused = true;
      return (await pace.next(signal)) ? relay(options, vchan, await openService(local)) : undefined;
    };
    return session.serve(orders, serve, keep);
  });
}

/** Connects to a server; with `unix` and `tcp`, once per local connection. Otherwise like listenAndRelay. */
export async function connectAndRelay(options: RelaySessionOptions, wait: boolean): Promise<number> {
  const { local } = options;
  await using session = await VchanSession.open(options, "client");
  if (local.kind !== "unix" && local.kind !== "tcp") {
    options.enterJail?.();
    return await repeat(options, () =>
      session.connect(wait, async (vchan) => relay(options, vchan, await openService(local))),
    );
  }
  const listener = await openListener(local);
  log.info(`listening at ${describeSpec(local)}`);
  try {
    options.enterJail?.();
    return await repeat(options, async (_pace, attempt) => {
      const fd = await session.accept(listener.fd, describeSpec(local));
      if (fd === undefined) return undefined;
      attempt.hasCome = true;
      const opened = socketEnd(fd);
      try {
        return await session.connect(wait, (vchan) => relay(options, vchan, opened));
      } finally {
        opened.close();
      }
    });
  } finally {
    listener.close();
  }
}

interface Attempt {
  /** A client or a local connection has arrived: an error after that concerns this session, not the next. */
  hasCome: boolean;
  /** A failure need not delay the next one. */
  hasPaused: boolean;
  /** Its failure leaves nothing to do for a next one. */
  isLast: boolean;
}

/** Runs `once`; with `keep`, repeatedly. Pauses after a failure unless `once` has paused before it. */
async function repeat(
  options: RelaySessionOptions,
  once: (pace: Pace, attempt: Attempt) => Promise<RelayOutcome | undefined>,
): Promise<number> {
  const pace = new Pace();
  do {
    const attempt: Attempt = { hasCome: false, hasPaused: false, isLast: false };
    try {
      const outcome = await once(pace, attempt);
      if (outcome === undefined) break;
      const { summary, status, isLast } = outcome;
      options.onSummary?.(summary);
      attempt.isLast = isLast;
      const error = summary.error ?? (options.keep && isLast ? "nobody reads standard output" : undefined);
      if (error !== undefined) throw new XentoolError("io", error, { domid: summary.domid });
      if (!options.keep) return status;
    } catch (error) {
      if (!options.keep || !isOfOneSession(error, attempt)) throw error;
      log.error(describeError(error));
      if (!attempt.hasPaused) await pace.next(options.signal);
    }
  } while (!options.signal.aborted);
  return 0;
}

/** A peer can break the protocol before `hasCome` is set. */
function isOfOneSession(error: unknown, { hasCome, isLast }: Attempt): boolean {
  if (isLast) return false;
  if (!(error instanceof XentoolError) || error.kind === "bug" || error.kind === "cancelled") return false;
  return hasCome || error.kind === "protocol";
}

/** Looks the service's host up while nothing is in the way. Where it cannot be found is said when a peer wants it. */
async function findService(local: LocalSpec): Promise<void> {
  if (local.kind === "tcp") await addressesOf(local.host).catch(() => {});
}

async function openService(local: LocalSpec): Promise<OpenedLocal> {
  switch (local.kind) {
    case "stdio":
      return openStdio(local);
    case "command":
      return openCommand(local.argv);
    case "unix":
    case "tcp":
      return openConnection(local);
  }
}

async function relay(
  options: RelaySessionOptions,
  vchan: VchanConnection,
  opened: OpenedLocal,
): Promise<RelayOutcome> {
  const { plane, control, role, peer, readSize, writeSize } = vchan;
  log.info(`connected to domain ${peer}, reading ${readSize} and writing ${writeSize} bytes at most`);
  const started = performance.now();
  const ended = options.onRelay?.(() => control.counts());
  try {
    const { lingerMs, sendOnly } = options;
    const result = await plane
      .carryOut<VchanOrder<"relay">>({ op: "relay", local: opened.end, lingerMs, sendOnly })
      .finally(ended);
    const seconds = (performance.now() - started) / 1000;
    const { bytesRead, bytesWritten, eventsSent, eventsReceived } = control.counts();
    const summary: SessionSummary = {
      role,
      domid: peer,
      path: options.place.path,
      end: result.end,
      bytesSent: bytesWritten,
      bytesReceived: bytesRead,
      bytesUnread: result.unread,
      bytesUndelivered: result.undelivered,
      seconds,
      readSize,
      writeSize,
      eventsSent,
      eventsReceived,
    };
    opened.close();
    const command = await exitOf(opened, patienceOf(result));
    const error = faultOf(summary, result, options.local);
    if (result.end === "lingered") log.warn(lingeredText(peer, lingerMs));
    log.info(`${result.end}: sent ${counted(bytesWritten, "byte")}, received ${bytesRead}`);
    return {
      summary: {
        ...summary,
        ...(command === undefined ? {} : { commandStatus: command.status }),
        ...(error === undefined ? {} : { error }),
      },
      status: command === undefined || command.wasKilled ? 0 : command.status,
      isLast: options.local.kind === "stdio" && result.end === "local-closed" && result.outputError === 0,
    };
  } catch (error) {
    opened.close();
    await exitOf(opened, 0);
    throw error;
  }
}

/** How long a command may take to exit by itself, now that it sees the end of its input. */
function patienceOf({ end, isLate = false }: RelayResult): number {
  if (isLate) return 0;
  return end === "stopped" ? STOP_GRACE_MS : COMMAND_EXIT_MS;
}

/** Waits for a command to exit, by itself for `patienceMs`. Returns how it ended. */
async function exitOf(
  opened: OpenedLocal,
  patienceMs: number,
): Promise<{ status: number; wasKilled: boolean } | undefined> {
  if (opened.exited === undefined) return undefined;
  if (await endsWithin(patienceMs, opened.exited)) return { status: await opened.exited, wasKilled: false };
  opened.kill("SIGTERM");
  if (!(await endsWithin(COMMAND_EXIT_MS, opened.exited))) opened.kill("SIGKILL");
  return { status: await opened.exited, wasKilled: true };
}

/** Why we closed before the peer did, and which option would make us wait. */
function lingeredText(peer: Domid, lingerMs = LINGER_MS): string {
  return (
    `domain ${peer} has read everything and sent nothing for ${lingerMs / 1000} s; its program cannot be told ` +
    "that our input has ended, so the vchan was closed (--linger SECONDS or forever waits longer)"
  );
}

/** What went wrong in a session that ran to its end, or undefined. */
function faultOf(summary: SessionSummary, result: RelayResult, spec: LocalSpec): string | undefined {
  const { domid, end, bytesUnread, bytesUndelivered } = summary;
  const { inputError, outputError } = result;
  const isStdio = spec.kind === "stdio";
  const local = describeSpec(spec);
  if (inputError !== 0) return `${isStdio ? "standard input" : local} failed: ${errnoName(inputError)}`;
  if (outputError !== 0) return `${isStdio ? "standard output" : local} failed: ${errnoName(outputError)}`;
  if (end === "stopped") return undefined;
  if (end === "peer-lost") return `domain ${domid} vanished in the middle of its stream`;
  // Undelivered bytes may be why others are unread, and those why a stream is cut short.
  if (bytesUndelivered > 0) return `${local} did not take the last ${counted(bytesUndelivered, "byte")}`;
  if (bytesUnread > 0) return `domain ${domid} closed the vchan with ${counted(bytesUnread, "byte")} unread`;
  if (end === "cut-short") return `domain ${domid} stopped before the end of its stream`;
  return undefined;
}
