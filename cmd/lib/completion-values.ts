// Domains and disks as xenstore shows them, for a shell to complete.
import { escapeText } from "../../src/core/log.ts";
import { parseDecimal } from "../../src/core/types.ts";
import { choosePlatform, type PlatformChoice } from "../../src/platform/open.ts";
import { vdevName } from "../../src/protocol/blkif.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { findDomainIn, listDomains, parseDomain } from "../../src/xenstore/domains.ts";

/** A name that is not taken for a number or an option, and that needs no quotes. */
const PLAIN_NAME = /^(?![0-9]+$|-)[\w.+-]+$/;
const DEVID_MAX = 0xffff_ffff;

interface Value {
  readonly text: string;
  readonly describe: string;
}

/** The numbers of all domains, then their names: those that name one domain alone and that no shell would change. */
export async function domains(platform: PlatformChoice, timeoutMs: number): Promise<Value[]> {
  return withXenstore(platform, timeoutMs, async (xenstore) => {
    const known = await listDomains(xenstore);
    const isUnique = (name: string): boolean => known.filter((it) => it.name === name).length === 1;
    const numbers = known.map(({ domid, name }) => ({
      text: String(domid),
      describe: escapeText(name ?? ""),
    }));
    const names = known.flatMap(({ domid, name }) =>
      name !== null && PLAIN_NAME.test(name) && isUnique(name)
        ? [{ text: name, describe: `domain ${domid}` }]
        : [],
    );
    return [...numbers, ...names];
  });
}

/** The disks of `domain`, a number or a name, or, without it, our own. */
export async function vdevs(
  platform: PlatformChoice,
  timeoutMs: number,
  domain: string | undefined,
): Promise<Value[]> {
  return withXenstore(platform, timeoutMs, async (xenstore) => {
    const owner =
      domain === undefined ? undefined : await findDomainIn(xenstore, parseDomain(domain, "--domid"));
    const home = owner === undefined ? "" : `/local/domain/${owner}/`;
    const devids = await xenstore.directory(`${home}device/vbd`);
    return devids
      .map((devid) => parseDecimal(devid, DEVID_MAX))
      .flatMap((devid) => (devid === undefined ? [] : [{ text: vdevName(devid), describe: "" }]));
  });
}

async function withXenstore<T>(
  choice: PlatformChoice,
  timeoutMs: number,
  body: (xenstore: Xenstore) => Promise<T>,
): Promise<T> {
  using platform = await choosePlatform({ platform: choice });
  using xenstore = await Xenstore.connect(platform, { timeoutMs });
  return await body(xenstore);
}
