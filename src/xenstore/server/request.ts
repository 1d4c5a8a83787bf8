// The input of every request handler and the errors it may raise, plus payload parsing: strings, domain numbers, and
// paths under the rules of docs/misc/xenstore.txt. Everything in a payload is untrusted.
import { parseDecimal } from "../../core/types.ts";
import {
  encodeStrings,
  isSpecialPath,
  isValidPath,
  XS_ABS_PATH_MAX,
  type XsPacket,
} from "../../protocol/xs-wire.ts";
import type { Domain } from "./domain.ts";
import { enforce, type Personality } from "./personality.ts";
import type { Permissions } from "./permissions.ts";
import { fail, type Quotas } from "./quota.ts";
import type { Session, SessionHost } from "./session.ts";
import type { StoreTree } from "./store.ts";
import type { LoggedRequest, Workspace } from "./transaction.ts";
import type { Change } from "./watch.ts";

/** The parts of the server that requests may use. */
export interface ServerState extends SessionHost {
  readonly personality: Personality;
  /** The current tree. A commit replaces it. */
  tree: StoreTree;
  readonly domains: ReadonlyMap<number, Domain>;
  /** Limits for domains introduced from now on. */
  quotas: Quotas;
  /** Feature bits offered to domains introduced from now on; undefined for the personality's. */
  defaultFeatures: number | undefined;
  specialPermissions(path: string): Permissions;
  setSpecialPermissions(path: string, permissions: Permissions): void;
  domainExists(domid: number): boolean;
  /** Serves a domain's ring, for INTRODUCE. */
  introduceByRequest(domid: number, gfn: number, port: number): void;
  release(domid: number): void;
  ringFrame(domid: number): number | undefined;
  /** Repeats a request of a transaction in `work`. Returns false if its reply differs from the earlier one. */
  repeat(session: Session, request: LoggedRequest, work: Workspace): boolean;
}

export interface Request {
  readonly server: ServerState;
  readonly session: Session;
  readonly domain: Domain;
  readonly packet: XsPacket;
  /** Whether it belongs to the transaction that its packet names. */
  readonly inTransaction: boolean;
  readonly work: Workspace;
  /** Sets the `changes` to report after the reply is sent. */
  report(changes: readonly Change[]): void;
  /** Schedules `action` for after that. */
  after(action: () => void): void;
}

/** A reply's payload, or a generator that takes several steps and returns one. */
export type Outcome = Uint8Array | Generator<void, Uint8Array>;

export type Handler = (request: Request) => Outcome;
/** Requests on nodes are never long, so they take a single step. */
export type NodeHandler = (request: Request) => Uint8Array;

export const OK = encodeStrings("OK");

/**
 * The bytes before `end`, one character per byte, as `Connection.sendEvent` expects: tokens may hold any bytes,
 * everything else is ASCII. Creates no view of the payload, because that would delay its collection until everything
 * else with a view is collected.
 */
function decodeBytes(bytes: Uint8Array, end: number): string {
  return Buffer.prototype.latin1Slice.call(bytes, 0, end);
}

/** The payload's strings: from `min` to `max` of them, each ended by a NUL. Fails with EINVAL otherwise. */
export function strings(request: Request, min: number, max = min): string[] {
  const { payload } = request.packet;
  const ended = payload.length === 0 || payload[payload.length - 1] === 0;
  const parts = payload.length === 0 ? [] : decodeBytes(payload, payload.length - 1).split("\0");
  if (!ended || parts.length < min || parts.length > max) fail("EINVAL");
  return parts;
}

/** The first string of a payload, and a copy of the bytes after its NUL. Fails with EINVAL if there is no NUL. */
export function splitFirst(payload: Uint8Array): { readonly first: string; readonly rest: Uint8Array } {
  const end = payload.indexOf(0);
  if (end < 0) fail("EINVAL");
  return { first: decodeBytes(payload, end), rest: payload.slice(end + 1) };
}

/** A decimal integer. Fails with EINVAL otherwise. */
export function number(text: string | undefined, max = Number.MAX_SAFE_INTEGER): number {
  return parseDecimal(text, max) ?? fail("EINVAL");
}

export function domidOf(text: string | undefined): number {
  return number(text, 0xffff);
}

/** The domain with this number. Fails with ENOENT if there is none. */
export function knownDomain(request: Request, text: string | undefined): Domain {
  return request.server.domains.get(domidOf(text)) ?? fail("ENOENT");
}

/**
 * `text` as an absolute path; a relative one is below the client's own directory. Fails with EINVAL if it is not a
 * valid path.
 */
export function nodePath(request: Request, text: string): string {
  if (isSpecialPath(text)) fail("EINVAL");
  return watchablePath(request, text);
}

/** Like `nodePath`, but also accepts a special path and leaves it unchanged. */
export function watchablePath(request: Request, text: string): string {
  const { domain, server } = request;
  if (!isValidPath(text)) fail("EINVAL");
  if (isSpecialPath(text)) return text;
  const path = text.startsWith("/") ? text : `${domain.path}/${text}`;
  const counted = path.replace(/^\/local\/domain\/[0-9]+\//, "");
  enforce(server.personality, domain.quotas, "pathBytes", counted.length);
  return path.length <= XS_ABS_PATH_MAX ? path : fail("EINVAL");
}
