// One domain as the xenstore server knows it: its rights, and what it has under way in all its connections.
import { Backlog } from "./backlog.ts";
import type { Actor } from "./permissions.ts";
import { PRIVILEGED_QUOTAS, type Quotas } from "./quota.ts";
import { Turns } from "./turns.ts";

/** What a domain knows of its connections. */
export interface DomainClient {
  /** Replies that the client has not taken. */
  readonly unreadReplies: number;
  /** Watch events that the client has not taken. */
  readonly unreadEvents: number;
  /** Watch events that the client lost because it did not read them. */
  readonly droppedEvents: number;
  /** Until the domain's intake has room again. */
  stopReading(): void;
  close(): void;
}

export class Domain implements Actor {
  readonly domid: number;
  readonly privileged: boolean;
  target: number | undefined;
  /** Whether INTRODUCE or `introduce` told of it. */
  introduced = false;
  /** Feature bits (XS_SET_FEATURE); the personality's when undefined. */
  features: number | undefined;
  /** The limits it is held to. */
  quotas: Quotas;
  readonly connections = new Set<DomainClient>();
  readonly turns: Turns;
  /** What its connections have not taken. */
  readonly backlog: Backlog;
  /** What its connections have sent and nobody has handled. */
  readonly intake: Backlog;
  watchCount = 0;
  transactionCount = 0;
  /** What its transactions hold, also those whose events are not out yet. */
  transactionBytes = 0;

  /** `now` returns milliseconds of a clock that only goes forward. */
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
