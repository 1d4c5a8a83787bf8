// The client-visible differences between real xenstore servers, with one record per server. The code asks the record,
// never the name. Sources: Xen 4.17 and 4.22 C xenstored, oxenstored, the ring-close RFC of 2014-06.
import type { XsErrno } from "../../protocol/xs-wire.ts";
import { fail, type Quotas } from "./quota.ts";

export const PERSONALITY_NAMES = ["xenstored-4.17", "xenstored-4.22", "oxenstored", "rfc-2014"] as const;
export type PersonalityName = (typeof PERSONALITY_NAMES)[number];

export interface Personality {
  readonly name: PersonalityName;

  /** Value of the ring page's server_features word (server_version in the RFC). */
  readonly serverFeatures: number;
  /** Bytes that fill a ring when the guest closes it; undefined: requests to close are ignored. */
  readonly ringPoison: Uint8Array | undefined;
  /** Interval in ms at which a ring is checked even without an event; undefined: never. */
  readonly ringScanMs: number | undefined;
  /** Whether a violation is written to the ring page's error word. */
  readonly writesErrorWord: boolean;
  /** The effect of INTRODUCE for a known domain: reset its connection, or only compare. */
  readonly reintroduce: "reset" | "compare";
  /** The effect of a header that announces more than 4096 bytes. */
  readonly overlong: "violation" | "clamp";

  /** How a transaction detects a conflict. */
  readonly conflicts: "generations" | "replay";
  /** Whether several changes of one path in a transaction are merged into one event. */
  readonly mergesTransactionEvents: boolean;
  /** Whether an event is left out while an equal one waits to be read. */
  readonly mergesEqualEvents: boolean;
  /** Which requests are replied to only after their events, which whoever asked may watch for, too. */
  readonly eventsFirst: "all" | "commits";
  /** The effect of removing "/". */
  readonly removeRoot: "refuse" | "empty";
  /** What happens to a reply above 4096 bytes. */
  readonly oversizeReply: "E2BIG" | "send";
  /** Which clients may use DIRECTORY_PART. */
  readonly directoryPart: "everyone" | "dom0" | "nobody";
  /** Whether WATCH accepts a depth. */
  readonly watchDepth: boolean;
  /** Whether GET_FEATURE, SET_FEATURE, GET_QUOTA and SET_QUOTA exist. */
  readonly features: boolean;
  /** Whether SET_PERMS fails with ENOENT for an owner that does not exist and drops other unknown domains. */
  readonly checksDomains: boolean;
  /** Whether the names of a node's children and its permissions count towards its size. */
  readonly countsWholeNode: boolean;
  /** Whether every domain may watch for domains that go away. */
  readonly releaseDomainForAll: boolean;
  /** The CONTROL commands that exist, in the order in which `help` lists them. */
  readonly controlCommands: readonly string[];
  /** What happens to another command. */
  readonly unknownCommand: "EINVAL" | "OK";
  /** The error of a RELEASE of a domain that is not known. */
  readonly unknownRelease: XsErrno;

  readonly quotas: Quotas;
  /** The error of a request that exceeds each quota. */
  readonly quotaErrno: Readonly<Record<keyof Quotas, XsErrno>>;
}

const C_QUOTAS: Quotas = {
  nodes: 1000,
  watches: 128,
  transactions: 10,
  transactionNodes: 1024,
  transactionBytes: 2.5 * 1024 * 1024, // C xenstored's limit for all of a domain's memory
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
  mergesEqualEvents: true,
  eventsFirst: "all",
  removeRoot: "refuse",
  oversizeReply: "E2BIG",
  directoryPart: "everyone",
  watchDepth: false,
  features: false,
  checksDomains: true,
  countsWholeNode: true,
  releaseDomainForAll: false,
  controlCommands: ["check", "log", "print", "quota", "help"],
  unknownCommand: "EINVAL",
  unknownRelease: "ENOENT",
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
  mergesEqualEvents: false,
  eventsFirst: "commits",
  removeRoot: "empty",
  oversizeReply: "E2BIG",
  directoryPart: "dom0",
  watchDepth: true,
  features: false,
  checksDomains: false,
  countsWholeNode: false,
  releaseDomainForAll: false,
  controlCommands: ["print", "quota", "watches", "txn", "mfn"],
  unknownCommand: "OK",
  unknownRelease: "EINVAL",
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

/** Fails with the personality's error for `limit` unless `amount` is within it. */
export function enforce(personality: Personality, quotas: Quotas, limit: keyof Quotas, amount: number): void {
  if (amount > quotas[limit]) fail(personality.quotaErrno[limit]);
}
