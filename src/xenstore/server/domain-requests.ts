// Requests reserved for dom0: introducing and releasing domains, their targets, features and quotas, and the server's
// own control commands.
import { encodeStrings } from "../../protocol/xs-wire.ts";
import { fail, QUOTA_WIRE_NAMES, type Quotas } from "./quota.ts";
import { domidOf, knownDomain, number, OK, strings, type Request } from "./request.ts";

/** Of public/xen.h: whoever asks. */
const DOMID_SELF = 0x7ff0;

export function introduce(request: Request): Uint8Array {
  const [domid, gfn, port] = strings(request, 3);
  request.server.introduceByRequest(domidOf(domid), number(gfn), number(port, 0xffff_ffff));
  return OK;
}

export function release(request: Request): Uint8Array {
  const [text] = strings(request, 1);
  const { server } = request;
  const domain = server.domains.get(domidOf(text)) ?? fail(server.personality.unknownRelease);
  if (domain.domid === 0) fail("EINVAL");
  request.after(() => server.release(domain.domid));
  return OK;
}

export function isDomainIntroduced(request: Request): Uint8Array {
  const [text] = strings(request, 1);
  const domid = domidOf(text);
  const isIntroduced = domid === DOMID_SELF || request.server.domains.get(domid)?.introduced === true;
  return encodeStrings(isIntroduced ? "T" : "F");
}

export function resume(request: Request): Uint8Array {
  const [text] = strings(request, 1);
  knownDomain(request, text);
  return OK;
}

export function setTarget(request: Request): Uint8Array {
  const [text, targetText] = strings(request, 2);
  const domain = knownDomain(request, text);
  domain.target = knownDomain(request, targetText).domid;
  return OK;
}

/** A domain's kernel reads the features when it starts, so they cannot change while it runs. */
export function setFeature(request: Request): Uint8Array {
  const { server } = request;
  if (!server.personality.features) fail("ENOSYS");
  const parts = strings(request, 1, 2);
  const features = number(parts.at(-1), 0xffff_ffff);
  if ((features & ~server.personality.serverFeatures) !== 0) fail("EINVAL");
  if (parts.length === 1) server.defaultFeatures = features;
  else {
    const domain = knownDomain(request, parts[0]);
    if (domain.introduced) fail("EBUSY");
    domain.features = features;
  }
  return OK;
}

/** Without arguments, returns the names of the quotas; otherwise one value, of a domain or of domains to come. */
export function getQuota(request: Request): Uint8Array {
  const { server } = request;
  if (!server.personality.features) fail("ENOSYS");
  const parts = strings(request, 0, 2);
  if (parts.length === 0) return encodeStrings([...QUOTA_WIRE_NAMES.keys()].join(" "));
  const quotas = parts.length === 1 ? server.quotas : knownDomain(request, parts[0]).quotas;
  const value = quotas[quotaName(parts.at(-1))];
  return encodeStrings(Number.isFinite(value) ? String(value) : "0");
}

export function setQuota(request: Request): Uint8Array {
  const { server } = request;
  if (!server.personality.features) fail("ENOSYS");
  const parts = strings(request, 2, 3);
  const change = { [quotaName(parts.at(-2))]: number(parts.at(-1), 0x7fff_ffff) };
  if (parts.length === 2) server.quotas = { ...server.quotas, ...change };
  else {
    const domain = knownDomain(request, parts[0]);
    domain.quotas = { ...domain.quotas, ...change };
  }
  return OK;
}

export function control(request: Request): Uint8Array {
  const { personality } = request.server;
  const [command = "", ...args] = strings(request, 1, Infinity);
  if (!personality.controlCommands.includes(command))
    return personality.unknownCommand === "OK" ? OK : fail("EINVAL");
  return CONTROL_COMMANDS[command]?.(request, args) ?? OK;
}

/** Commands that reply with more than OK. */
const CONTROL_COMMANDS: Readonly<Record<string, (request: Request, args: readonly string[]) => Uint8Array>> =
  {
    help: ({ server }) =>
      encodeStrings(`Supported commands: ${server.personality.controlCommands.join(" ")}`),
    quota: ({ server }) => encodeStrings(quotaLines(server.quotas)),
    watches: ({ server }) => encodeStrings(`${server.watches.count}`),
    txn: ({ server }) =>
      encodeStrings(
        `${[...server.domains.values()].reduce((sum, domain) => sum + domain.transactionCount, 0)}`,
      ),
    mfn: ({ server }, [domid]) => encodeStrings(String(server.ringFrame(domidOf(domid)) ?? fail("ENOENT"))),
  };

function quotaLines(quotas: Quotas): string {
  return [...QUOTA_WIRE_NAMES].map(([wireName, name]) => `${wireName.padEnd(20)} ${quotas[name]}`).join("\n");
}

function quotaName(text: string | undefined): keyof Quotas {
  return QUOTA_WIRE_NAMES.get(text ?? "") ?? fail("EINVAL");
}
