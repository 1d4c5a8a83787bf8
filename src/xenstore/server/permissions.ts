// Access rights to a node. The first permission names the owner, who may do everything, and the access of all others;
// further ones name domains with their own access (docs/misc/xenstore.txt).
import type { XsAccess, XsPermission } from "../../protocol/xs-wire.ts";

export const ALLOW_READ = 1;
export const ALLOW_WRITE = 2;
/** The right to change the permissions. */
export const ALLOW_OWNER = 4;

export type Permissions = readonly XsPermission[];

/** The domain on whose behalf a request is made. */
export interface Actor {
  readonly domid: number;
  readonly privileged: boolean;
  /** A domain whose rights it also has (XS_SET_TARGET). */
  readonly target: number | undefined;
}

const BITS: Readonly<Record<XsAccess, number>> = {
  none: 0,
  read: ALLOW_READ,
  write: ALLOW_WRITE,
  both: ALLOW_READ | ALLOW_WRITE,
};

/** Whether `actor` has all the rights in `wanted` (ALLOW_* bits). */
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

/** The permissions of a new node: its parent's, except that an unprivileged creator becomes the owner. */
export function inherit(actor: Actor, parent: Permissions): Permissions {
  const first = parent[0];
  if (actor.privileged || first === undefined || first.domid === actor.domid) return parent;
  return [{ domid: actor.domid, access: first.access }, ...parent.slice(1)];
}
