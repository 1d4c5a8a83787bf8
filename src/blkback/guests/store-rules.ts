// What the process of a guest may ask of xenstore, where `watch` has all the rights of its domain: to read what belongs
// to the guest's disks, and to write what a backend writes there. It may not choose the image of a disk, nor touch the
// disks of others.
import type { Domid } from "../../core/types.ts";
import {
  decodeText,
  isValidPath,
  isWithin,
  XS_DIRECTORY,
  XS_DIRECTORY_PART,
  XS_GET_DOMAIN_PATH,
  XS_GET_PERMS,
  XS_MKDIR,
  XS_READ,
  XS_RM,
  XS_TRANSACTION_END,
  XS_TRANSACTION_START,
  XS_UNWATCH,
  XS_WATCH,
  XS_WRITE,
  type XsPacket,
} from "../../protocol/xs-wire.ts";

export interface StoreScope {
  readonly backend: Domid;
  readonly kind: string;
  readonly frontend: Domid;
}

/** The keys that a backend writes. All others, above all those that name the image, are the toolstack's. */
const BACKENDS_KEYS = new Set([
  "state",
  "hotplug-status",
  "hotplug-error",
  "physical-device",
  "sectors",
  "info",
  "sector-size",
  "physical-sector-size",
  "discard-granularity",
  "discard-alignment",
  "discard-secure",
]);
const BACKENDS_PREFIX = /^(?:feature|max-ring|multi-queue|xentool)-/;

/** Whether the request may be passed on. */
export function mayAskStore({ backend, kind, frontend }: StoreScope, { type, payload }: XsPacket): boolean {
  const disks = `/local/domain/${backend}/backend/${kind}/${frontend}`;
  const errors = `/local/domain/${backend}/error/backend/${kind}/${frontend}`;
  const path = pathIn(payload);
  const isIn = (...places: readonly string[]): boolean =>
    isValidPath(path) && places.some((place) => isWithin(path, place));
  switch (type) {
    case XS_TRANSACTION_START:
    case XS_TRANSACTION_END:
    case XS_GET_DOMAIN_PATH:
      return true;
    case XS_WATCH:
    case XS_UNWATCH:
      return path === "@releaseDomain" || isIn(disks, errors, `/local/domain/${frontend}`);
    case XS_READ:
    case XS_DIRECTORY:
    case XS_DIRECTORY_PART:
    case XS_GET_PERMS:
      return isIn(disks, errors, `/local/domain/${frontend}`);
    case XS_RM:
      return isIn(errors) || (isIn(disks) && isBackends(path.slice(disks.length), true));
    case XS_WRITE:
    case XS_MKDIR:
      return isIn(errors) || (isIn(disks) && isBackends(path.slice(disks.length), false));
    default:
      return false;
  }
}

/** `below` is what follows the directory of the guest's disks: "/DEVID/KEY". Whole devices may only be removed. */
function isBackends(below: string, mayBeWhole: boolean): boolean {
  const [, , key, ...deeper] = below.split("/");
  return key === undefined ? mayBeWhole : deeper.length === 0 && isBackendsKey(key);
}

function isBackendsKey(key: string): boolean {
  return BACKENDS_KEYS.has(key) || BACKENDS_PREFIX.test(key);
}

/** Up to the first NUL. */
function pathIn(payload: Uint8Array): string {
  const end = payload.indexOf(0);
  return decodeText(end < 0 ? payload : payload.subarray(0, end));
}
