// What every request handler gets and what it may throw, and the reading of payloads: strings, domain
// numbers, and paths with the rules of docs/misc/xenstore.txt. Everything in a payload is untrusted.
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

/** What requests may use of the server. */
export interface ServerState extends SessionHost {
  readonly personality: Personality;
  /** The present tree. A commit replaces it. */
  tree: StoreTree;
  readonly domains: ReadonlyMap<number, Domain>;
  /** Limits that domains introduced from now on are held to. */
  quotas: Quotas;
  /** Feature bits that domains introduced from now on are offered; the personality's when undefined. */
  defaultFeatures: number | undefined;
  specialPermissions(path: string): Permissions;
  setSpecialPermissions(path: string, permissions: Permissions): void;
  domainExists(domid: number): boolean;
  /** Serves the ring of a domain, by INTRODUCE. */
  introduceByRequest(domid: number, gfn: number, port: number): void;
  release(domid: number): void;
  ringFrame(domid: number): number | undefined;
  /** Does a request of a transaction again, in `work`; false when it gets another reply than it had. */
  repeat(session: Session, request: LoggedRequest, work: Workspace): boolean;
}

export interface Request {
  readonly server: ServerState;
  readonly session: Session;
  readonly domain: Domain;
  readonly packet: XsPacket;
  /** Whether it is part of a transaction, the one that its packet names. */
  readonly inTransaction: boolean;
  readonly work: Workspace;
  /** Has `changes` reported when the reply is on its way. */
  report(changes: readonly Change[]): void;
  /** Has `action` run when that is done. */
  after(action: () => void): void;
}

/** A reply's payload, or a request of many steps that ends with one. */
export type Outcome = Uint8Array | Generator<void, Uint8Array>;

export type Handler = (request: Request) => Outcome;
/** What works on nodes is never long. */
export type NodeHandler = (request: Request) => Uint8Array;

export const OK = encodeStrings("OK");

/**
 * The bytes before `end`, one character for each, as `Connection.sendEvent` has it: tokens are any bytes, all else
 * is ASCII. Without a view of the payload, which would take it as long to be collected as all else that has one.
 */
function decodeBytes(bytes: Uint8Array, end: number): string {
  return Buffer.prototype.latin1Slice.call(bytes, 0, end);
}

/** The payload's strings: at least `min`, at most `max`, the last with its NUL too. EINVAL otherwise. */
export function strings(request: Request, min: number, max = min): string[] {
  const { payload } = request.packet;
  const ended = payload.length === 0 || payload[payload.length - 1] === 0;
  const parts = payload.length === 0 ? [] : decodeBytes(payload, payload.length - 1).split("\0");
  if (!ended || parts.length < min || parts.length > max) fail("EINVAL");
  return parts;
}

/** The first string of a payload, and a copy of the bytes after its NUL. */
export function splitFirst(payload: Uint8Array): { readonly first: string; readonly rest: Uint8Array } {
  const end = payload.indexOf(0);
  if (end < 0) fail("EINVAL");
  return { first: decodeBytes(payload, end), rest: payload.slice(end + 1) };
}

/** A whole number in decimal. EINVAL otherwise. */
export function number(text: string | undefined, max = Number.MAX_SAFE_INTEGER): number {
  return parseDecimal(text, max) ?? fail("EINVAL");
}

export function domidOf(text: string | undefined): number {
  return number(text, 0xffff);
}

/** The domain of this number, ENOENT when there is none. */
export function knownDomain(request: Request, text: string | undefined): Domain {
  return request.server.domains.get(domidOf(text)) ?? fail("ENOENT");
}

/** `text` as an absolute path; relative ones are below the client's own directory. EINVAL when it is none. */
export function nodePath(request: Request, text: string): string {
  if (isSpecialPath(text)) fail("EINVAL");
  return watchablePath(request, text);
}

/** As `nodePath`, but a special path is allowed too and stays as it is. */
export function watchablePath(request: Request, text: string): string {
  const { domain, server } = request;
  if (!isValidPath(text)) fail("EINVAL");
  if (isSpecialPath(text)) return text;
  const path = text.startsWith("/") ? text : `${domain.path}/${text}`;
  const counted = path.replace(/^\/local\/domain\/[0-9]+\//, "");
  enforce(server.personality, domain.quotas, "pathBytes", counted.length);
  return path.length <= XS_ABS_PATH_MAX ? path : fail("EINVAL");
}
