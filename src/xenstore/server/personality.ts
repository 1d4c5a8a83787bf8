// How real xenstore servers differ where a client can see it. One record a server; the code asks the
// record, never the name. Facts: Xen 4.17 and 4.22 C xenstored, oxenstored, the ring-close RFC of 2014-06.
import type { XsErrno } from "../../protocol/xs-wire.ts";
import { fail, type Quotas } from "./quota.ts";

export const PERSONALITY_NAMES = ["xenstored-4.17", "xenstored-4.22", "oxenstored", "rfc-2014"] as const;
export type PersonalityName = (typeof PERSONALITY_NAMES)[number];

export interface Personality {
  readonly name: PersonalityName;

  /** What the ring page's server_features word says (server_version in the RFC). */
  readonly serverFeatures: number;
  /** Bytes that fill a ring when the guest closes it; undefined: such a wish is ignored. */
  readonly ringPoison: Uint8Array | undefined;
  /** How often a ring is looked at although no event came; undefined: never. */
  readonly ringScanMs: number | undefined;
  /** Whether a violation is written to the ring page's error word. */
  readonly writesErrorWord: boolean;
  /** What INTRODUCE of a known domain does: reset its connection, or only compare. */
  readonly reintroduce: "reset" | "compare";
  /** What a header that announces more than 4096 bytes does. */
  readonly overlong: "violation" | "clamp";

  /** How a transaction finds out that it came too late. */
  readonly conflicts: "generations" | "replay";
  /** Whether several changes of one path in a transaction become one event. */
  readonly mergesTransactionEvents: boolean;
  /** What removing "/" does. */
  readonly removeRoot: "refuse" | "empty";
  /** What becomes of a reply above 4096 bytes. */
  readonly oversizeReply: "E2BIG" | "send";
  /** Who may use DIRECTORY_PART. */
  readonly directoryPart: "everyone" | "dom0" | "nobody";
  /** Whether WATCH takes a depth. */
  readonly watchDepth: boolean;
  /** GET_FEATURE, SET_FEATURE, GET_QUOTA and SET_QUOTA. */
  readonly features: boolean;
  /** Whether permissions may name an owner that does not exist (ENOENT) and drop other unknown domains. */
  readonly checksDomains: boolean;
  /** Whether a node's names of children and permissions count towards its size. */
  readonly countsWholeNode: boolean;
  /** Whether every domain hears of domains that go away. */
  readonly releaseDomainForAll: boolean;
  /** CONTROL commands, as `help` lists them; empty: there is no help. */
  readonly controlCommands: readonly string[];
  readonly hasControlHelp: boolean;

  readonly quotas: Quotas;
  /** The error that each quota ends with when it is used up. */
  readonly quotaErrno: Readonly<Record<keyof Quotas, XsErrno>>;
}

const C_QUOTAS: Quotas = {
  nodes: 1000,
  watches: 128,
  transactions: 10,
  transactionNodes: 1024,
  transactionBytes: 2.5 * 1024 * 1024, // C xenstored's limit of all memory of a domain
  permissions: 5,
  nodeBytes: 2048,
  pathBytes: 2048,
  outstanding: 20,
  watchEvents: 1024,
  unreadBytes: 2.5 * 1024 * 1024,
  inputBytes: 2 * 1024 * 1024,
  connections: 256,
};

const XENSTORED_417: Personality = {
  name: "xenstored-4.17",
  serverFeatures: 0,
  ringPoison: undefined,
  ringScanMs: undefined,
  writesErrorWord: true,
  reintroduce: "reset",
  overlong: "violation",
  conflicts: "generations",
  mergesTransactionEvents: true,
  removeRoot: "refuse",
  oversizeReply: "E2BIG",
  directoryPart: "everyone",
  watchDepth: false,
  features: false,
  checksDomains: true,
  countsWholeNode: true,
  releaseDomainForAll: false,
  controlCommands: ["check", "log", "print", "quota", "help"],
  hasControlHelp: true,
  quotas: C_QUOTAS,
  quotaErrno: {
    nodes: "ENOSPC",
    watches: "E2BIG",
    transactions: "ENOSPC",
    transactionNodes: "ENOSPC",
    transactionBytes: "ENOMEM",
    permissions: "ENOSPC",
    nodeBytes: "ENOSPC",
    pathBytes: "EINVAL",
    outstanding: "ENOSPC",
    watchEvents: "ENOSPC",
    unreadBytes: "ENOSPC",
    inputBytes: "ENOSPC",
    connections: "ENOSPC",
  },
};

const XENSTORED_422: Personality = {
  ...XENSTORED_417,
  name: "xenstored-4.22",
  serverFeatures: 2 | 4 | 8,
  watchDepth: true,
  features: true,
  releaseDomainForAll: true,
  quotaErrno: { ...XENSTORED_417.quotaErrno, watches: "ENOSPC" },
};

const OXENSTORED: Personality = {
  name: "oxenstored",
  serverFeatures: 1,
  ringPoison: new Uint8Array([0xff]),
  ringScanMs: 20_000,
  writesErrorWord: false,
  reintroduce: "compare",
  overlong: "clamp",
  conflicts: "replay",
  mergesTransactionEvents: false,
  removeRoot: "empty",
  oversizeReply: "E2BIG",
  directoryPart: "dom0",
  watchDepth: true,
  features: false,
  checksDomains: false,
  countsWholeNode: false,
  releaseDomainForAll: false,
  controlCommands: ["print", "quota", "watches", "txn", "mfn"],
  hasControlHelp: false,
  quotas: { ...C_QUOTAS, watches: 100, pathBytes: 1024, outstanding: 1024 },
  quotaErrno: {
    nodes: "EQUOTA",
    watches: "EQUOTA",
    transactions: "EQUOTA",
    transactionNodes: "EQUOTA",
    transactionBytes: "EQUOTA",
    permissions: "EINVAL",
    nodeBytes: "E2BIG",
    pathBytes: "EINVAL",
    outstanding: "EQUOTA",
    watchEvents: "EQUOTA",
    unreadBytes: "EQUOTA",
    inputBytes: "EQUOTA",
    connections: "EQUOTA",
  },
};

const RFC_2014: Personality = {
  ...OXENSTORED,
  name: "rfc-2014",
  ringPoison: new TextEncoder().encode("deadbeef"),
  oversizeReply: "send",
  directoryPart: "nobody",
  watchDepth: false,
};

export const PERSONALITIES: Readonly<Record<PersonalityName, Personality>> = {
  "xenstored-4.17": XENSTORED_417,
  "xenstored-4.22": XENSTORED_422,
  oxenstored: OXENSTORED,
  "rfc-2014": RFC_2014,
};

/** Ends the request as the personality does when `limit` is used up, unless `amount` is within it. */
export function enforce(personality: Personality, quotas: Quotas, limit: keyof Quotas, amount: number): void {
  if (amount > quotas[limit]) fail(personality.quotaErrno[limit]);
}
