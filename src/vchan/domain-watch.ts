// Whether a domain is there, as xenstored knows it. It tells the control domain alone.
import type { Domid } from "../core/types.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { errnoOf } from "../xenstore/errors.ts";

/** Undefined when we may not ask. */
export async function domainExists(xenstore: Xenstore, domid: Domid): Promise<boolean | undefined> {
  try {
    return await xenstore.isDomainIntroduced(domid);
  } catch (error) {
    if (errnoOf(error) === "EACCES") return undefined;
    throw error;
  }
}

/**
 * Runs `onGone` when the domain is gone, also when it is so already. Give back the result to end that; undefined
 * when we may not ask.
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
