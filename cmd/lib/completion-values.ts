// Domains and disks as xenstore shows them, for a shell to complete.
import { escapeText } from "../../src/core/log.ts";
import { DOMID_FIRST_RESERVED, parseDecimal } from "../../src/core/types.ts";
import { choosePlatform, type PlatformChoice } from "../../src/platform/open.ts";
import { vdevName } from "../../src/protocol/blkif.ts";
import { Xenstore } from "../../src/xenstore/client.ts";

const DOMID_MAX = DOMID_FIRST_RESERVED - 1;
const DEVID_MAX = 0xffff_ffff;

interface Value {
  readonly text: string;
  readonly describe: string;
}

/** The numbers of all domains, with their names. */
export async function domains(platform: PlatformChoice, timeoutMs: number): Promise<Value[]> {
  return withXenstore(platform, timeoutMs, async (xenstore) => {
    const numbers = (await xenstore.directory("/local/domain")).filter(
      (text) => parseDecimal(text, DOMID_MAX) !== undefined,
    );
    const named = numbers.map(async (text) => ({
      text,
      describe: escapeText((await xenstore.tryRead(`/local/domain/${text}/name`)) ?? ""),
    }));
    return Promise.all(named);
  });
}

/** The disks of domain `domid`, or, without it, our own. */
export async function vdevs(
  platform: PlatformChoice,
  timeoutMs: number,
  domid: string | undefined,
): Promise<Value[]> {
  return withXenstore(platform, timeoutMs, async (xenstore) => {
    const owner = domid === undefined ? undefined : parseDecimal(domid, DOMID_MAX);
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
  const platform = await choosePlatform({ platform: choice });
  try {
    using xenstore = await Xenstore.connect(platform, { timeoutMs });
    return await body(xenstore);
  } finally {
    platform.close();
  }
}
