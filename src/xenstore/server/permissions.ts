// Who may do what with a node. The first permission names the owner, who may do everything, and what all
// others may; the further ones name domains with an access of their own (docs/misc/xenstore.txt).
import type { XsAccess, XsPermission } from "../../protocol/xs-wire.ts";

export const ALLOW_READ = 1;
export const ALLOW_WRITE = 2;
/** To change the permissions. */
export const ALLOW_OWNER = 4;

export type Permissions = readonly XsPermission[];

/** On whose behalf a request is made. */
export interface Actor {
  readonly domid: number;
  readonly privileged: boolean;
  /** A domain whose rights it has too (XS_SET_TARGET). */
  readonly target: number | undefined;
}

const BITS: Readonly<Record<XsAccess, number>> = {
  none: 0,
  read: ALLOW_READ,
  write: ALLOW_WRITE,
  both: ALLOW_READ | ALLOW_WRITE,
};

/** Whether `actor` may do all that `wanted` (ALLOW_* bits) says. */
export function allows(actor: Actor, permissions: Permissions, wanted: number): boolean {
  return actor.privileged || (rights(actor, permissions) & wanted) === wanted;
}

function rights(actor: Actor, permissions: Permissions): number {
  const everyone = permissions[0];
  if (everyone === undefined) return 0;
  if (isActor(actor, everyone.domid)) return ALLOW_READ | ALLOW_WRITE | ALLOW_OWNER;
  const own = permissions.find((permission, index) => index > 0 && isActor(actor, permission.domid));
  return BITS[(own ?? everyone).access];
}

function isActor(actor: Actor, domid: number): boolean {
  return domid === actor.domid || domid === actor.target;
}

/** The permissions of a new node: its parent's; a creator without privileges becomes the owner. */
export function inherit(actor: Actor, parent: Permissions): Permissions {
  const first = parent[0];
  if (actor.privileged || first === undefined || first.domid === actor.domid) return parent;
  return [{ domid: actor.domid, access: first.access }, ...parent.slice(1)];
}
