// One domain as the xenstore server sees it: its rights, and the work in progress on all its connections.
import { Backlog } from "./backlog.ts";
import type { Actor } from "./permissions.ts";
import { PRIVILEGED_QUOTAS, type Quotas } from "./quota.ts";
import { Turns } from "./turns.ts";

/** A connection as its domain sees it. */
export interface DomainClient {
  /** Replies that the client has not read. */
  readonly unreadReplies: number;
  /** Watch events that the client has not read. */
  readonly unreadEvents: number;
  /** Watch events lost because the client did not read them. */
  readonly droppedEvents: number;
  /** Stops reading until the domain's intake has room again. */
  stopReading(): void;
  close(): void;
}

export class Domain implements Actor {
  readonly domid: number;
  readonly privileged: boolean;
  target: number | undefined;
  /** Whether it was introduced, by INTRODUCE or by `introduce`. */
  introduced = false;
  /** Feature bits (XS_SET_FEATURE); undefined for the defaults. */
  features: number | undefined;
  /** The limits that apply to it. */
  quotas: Quotas;
  readonly connections = new Set<DomainClient>();
  readonly turns: Turns;
  /** Output that its connections have not read. */
  readonly backlog: Backlog;
  /** Input from its connections that has not been handled. */
  readonly intake: Backlog;
  watchCount = 0;
  transactionCount = 0;
  /** Bytes held by its transactions, including those whose events have not been sent yet. */
  transactionBytes = 0;

  /** `now` returns the milliseconds of a monotonic clock. */
  constructor(domid: number, quotas: Quotas, now: () => number) {
    this.domid = domid;
    this.privileged = domid === 0;
    this.quotas = this.privileged ? PRIVILEGED_QUOTAS : quotas;
    this.turns = new Turns(now);
    this.backlog = new Backlog(() => this.quotas.unreadBytes, this.turns);
    this.intake = new Backlog(() => this.quotas.inputBytes, this.turns);
  }

  get path(): string {
    return `/local/domain/${this.domid}`;
  }
}
