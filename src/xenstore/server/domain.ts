// One domain as the xenstore server knows it: its rights, and what it has under way in all its connections.
import { Backlog } from "./backlog.ts";
import type { Actor } from "./permissions.ts";
import { PRIVILEGED_QUOTAS, type Quotas } from "./quota.ts";
import type { Connection } from "./connection.ts";
import { Turns } from "./turns.ts";

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
  readonly connections = new Set<Connection>();
  readonly turns = new Turns();
  readonly backlog = new Backlog(() => this.quotas.unreadBytes, this.turns);
  watchCount = 0;
  transactionCount = 0;

  constructor(domid: number, quotas: Quotas) {
    this.domid = domid;
    this.privileged = domid === 0;
    this.quotas = this.privileged ? PRIVILEGED_QUOTAS : quotas;
  }

  get path(): string {
    return `/local/domain/${this.domid}`;
  }
}
