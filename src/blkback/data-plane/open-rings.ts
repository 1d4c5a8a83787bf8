// Opens what a guest has named in its keys: the pages and ports of its rings.
import { XentoolError } from "../../core/errors.ts";
import type { Domid, EvtchnPort } from "../../core/types.ts";
import type { Mapping } from "../../native/memory.ts";
import type { EventChannels, GrantTable } from "../../platform/platform.ts";
import type { RingAddress } from "../device/ring-parameters.ts";

/** Errnos that blame the guest's keys; every other one blames the host. */
const NAMED_WRONGLY = new Set(["EINVAL", "ENOENT", "ESRCH"]);

export interface OpenRing {
  readonly queue: number;
  readonly ring: Mapping;
  readonly port: EvtchnPort;
}

/**
 * Opens the first of `sets` of which everything exists and that `isOurs` accepts, or, if it accepts none, the first of
 * which everything exists. The stack `cleanup` unmaps and unbinds it. Throws `protocol` when something in each of them
 * does not exist or is not meant for us.
 *
 * What an earlier kernel of the guest left in its keys may exist again by now, as the ring of another disk: numbers
 * are used again. A ring that has been served shows whose it is.
 */
export function openRings(
  domid: Domid,
  sets: readonly (readonly RingAddress[])[],
  grants: GrantTable,
  channels: EventChannels,
  isOurs: (rings: readonly OpenRing[]) => boolean,
  cleanup: DisposableStack,
): OpenRing[] {
  let refusal: unknown;
  let other: readonly RingAddress[] | undefined;
  for (const set of sets) {
    using opened = new DisposableStack();
    try {
      const rings = openSet(domid, set, grants, channels, opened);
      if (sets.length === 1 || isOurs(rings)) {
        cleanup.use(opened.move());
        return rings;
      }
      other ??= set;
    } catch (error) {
      if (!(error instanceof XentoolError) || !NAMED_WRONGLY.has(String(error.context["errno"]))) throw error;
      refusal ??= new XentoolError("protocol", error.message, error.context);
    }
  }
  if (other === undefined) throw refusal;
  return openSet(domid, other, grants, channels, cleanup);
}

function openSet(
  domid: Domid,
  set: readonly RingAddress[],
  grants: GrantTable,
  channels: EventChannels,
  cleanup: DisposableStack,
): OpenRing[] {
  return set.map(({ queue, refs, remotePort }) => {
    const ring = cleanup.adopt(grants.map(domid, refs, "rw"), (it) => it.close());
    const port = channels.bindInterdomain(domid, remotePort);
    cleanup.defer(() => channels.unbind(port));
    return { queue, ring, port };
  });
}
