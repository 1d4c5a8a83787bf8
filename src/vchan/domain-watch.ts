// Notices when a domain is gone, according to xenstored, which answers this only for the control domain.
import type { Domid } from "../core/types.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { domainExists } from "../xenstore/domains.ts";

/**
 * Runs `onGone` when the domain is gone, or at once if it already is. Call the result to stop watching; it is
 * undefined when we may not ask.
 */
export async function watchDomain(
  xenstore: Xenstore,
  domid: Domid,
  onGone: () => void,
): Promise<(() => unknown) | undefined> {
  if ((await domainExists(xenstore, domid)) === undefined) return undefined;
  return xenstore.watch("@releaseDomain", async () => {
    if (!(await xenstore.isDomainIntroduced(domid))) onGone();
  });
}
