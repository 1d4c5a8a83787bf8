// The domains that xenstore knows, and how people name one: by its number, or by the name that its toolstack gave it.
import { XentoolError } from "../core/errors.ts";
import { escapeText } from "../core/log.ts";
import { DOMID_FIRST_RESERVED, parseDecimal, toDomid, type Domid } from "../core/types.ts";
import { noDomain } from "../platform/domains.ts";
import type { Platform } from "../platform/platform.ts";
import { Xenstore, type Unwatch } from "./client.ts";
import { errnoOf, nullIfDenied } from "./errors.ts";

/** A domain's number, or its name. */
export type NamedDomain = Domid | string;

export interface KnownDomain {
  readonly domid: Domid;
  /** Null if it has none, or none that we may read. */
  readonly name: string | null;
}

/** `text` as a domain: digits alone are a number, as in xl. Throws `usage`, naming `what`, if no domain can have it. */
export function parseDomain(text: string, what: string): NamedDomain {
  return /^[0-9]+$/.test(text) ? toDomid(Number(text), what) : text;
}

/** The number of `domain`. A number needs no xenstore, so it works when xenstored is stuck. */
export async function findDomain(
  platform: Platform,
  domain: NamedDomain,
  timeoutMs?: number,
): Promise<Domid> {
  if (typeof domain !== "string") return domain;
  using xenstore = await Xenstore.connect(platform, { timeoutMs });
  return await findDomainIn(xenstore, domain);
}

/** The number of `domain`. Fails with `environment` if none, or more than one, has that name. */
export async function findDomainIn(xenstore: Xenstore, domain: NamedDomain): Promise<Domid> {
  if (typeof domain !== "string") return domain;
  const known = await listDomains(xenstore).catch((error: unknown) => {
    if (errnoOf(error) !== "EACCES") throw error;
    const message = `cannot look up "${escapeText(domain)}": this domain may not list the others; use its number`;
    throw new XentoolError("environment", message, {}, error);
  });
  const [found, ...others] = known.filter(({ name }) => name === domain).map(({ domid }) => domid);
  if (found === undefined) throw noDomain(domain);
  if (others.length === 0) return found;
  const numbers = [found, ...others].join(" and ");
  const message = `domains ${numbers} are both called "${escapeText(domain)}": use the number`;
  throw new XentoolError("environment", others.length === 1 ? message : message.replace(" both", " all"));
}

/** All domains. */
export async function listDomains(xenstore: Xenstore): Promise<KnownDomain[]> {
  const numbers = (await xenstore.directory("/local/domain"))
    .map((text) => parseDecimal(text, DOMID_FIRST_RESERVED - 1))
    .filter((domid) => domid !== undefined)
    .map((domid) => toDomid(domid));
  return Promise.all(
    numbers.map(async (domid) => ({
      domid,
      name: await xenstore.tryRead(`/local/domain/${domid}/name`).catch(nullIfDenied),
    })),
  );
}

/** Whether xenstored knows the domain: it answers this for the control domain only. Undefined when we may not ask. */
export async function domainExists(xenstore: Xenstore, domid: Domid): Promise<boolean | undefined> {
  return (await xenstore.isDomainIntroduced(domid).catch(nullIfDenied)) ?? undefined;
}

/**
 * Runs `onGone` when xenstored knows the domain no longer, or at once if it already does not. Call the result to stop
 * watching; it is undefined when we may not ask.
 */
export async function watchDomain(
  xenstore: Xenstore,
  domid: Domid,
  onGone: () => void,
): Promise<Unwatch | undefined> {
  if ((await domainExists(xenstore, domid)) === undefined) return undefined;
  return xenstore.watch("@releaseDomain", async () => {
    if (!(await xenstore.isDomainIntroduced(domid))) onGone();
  });
}
