// Opens what a guest has named in its keys: the pages and ports of its rings.
import { XentoolError } from "../core/errors.ts";
import type { Domid, EvtchnPort } from "../core/types.ts";
import type { Mapping } from "../native/memory.ts";
import type { EventChannels, GrantTable } from "../platform/platform.ts";
import type { RingAddress } from "./ring-parameters.ts";

/** Errnos that blame the guest's keys; every other one blames the host. */
const NAMED_WRONGLY = new Set(["EINVAL", "ENOENT", "ESRCH"]);

export interface OpenRing {
  readonly ring: Mapping;
  readonly port: EvtchnPort;
}

/**
 * Opens the first of `sets` of which everything exists. The stack `cleanup` unmaps and unbinds it. Throws `protocol`
 * when something in each of them does not exist or is not meant for us.
 */
export function openRings(
  domid: Domid,
  sets: readonly (readonly RingAddress[])[],
  grants: GrantTable,
  channels: EventChannels,
  cleanup: DisposableStack,
): OpenRing[] {
  let first: unknown;
  for (const set of sets) {
    using opened = new DisposableStack();
    try {
      const rings = set.map(({ refs, remotePort }) => {
        const ring = opened.adopt(grants.map(domid, refs, "rw"), (it) => it.close());
        const port = channels.bindInterdomain(domid, remotePort);
        opened.defer(() => channels.unbind(port));
        return { ring, port };
      });
      cleanup.use(opened.move());
      return rings;
    } catch (error) {
      if (!(error instanceof XentoolError) || !NAMED_WRONGLY.has(String(error.context["errno"]))) throw error;
      first ??= new XentoolError("protocol", error.message, error.context);
    }
  }
  throw first;
}
