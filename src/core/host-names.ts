// The addresses of hosts by their names. A name is looked up anew each time, because a host may move. In a jail that is
// possible until a file that says where hosts are is replaced by another one: the jail knows the former alone
// (platform/jail.ts). From then on a host counts as being where it was found last, which is said once.
import { lookup } from "node:dns/promises";
import { closeSync, openSync } from "node:fs";
import { isIP } from "node:net";
import { moduleLogger } from "./log.ts";

/** What says where a host is. */
export const NAME_FILES: readonly string[] = [
  "/etc/hosts",
  "/etc/resolv.conf",
  "/etc/nsswitch.conf",
  "/etc/host.conf",
  "/etc/gai.conf",
];

/** By name, what was found last. */
const known = new Map<string, readonly string[]>();
const said = new Set<string>();

/** All addresses of `host`, a name or a number, the best first. Rejects as `lookup` does when it has none. */
export async function addressesOf(host: string): Promise<readonly string[]> {
  if (isIP(host) !== 0) return [host];
  const before = known.get(host);
  const replaced = before === undefined ? undefined : NAME_FILES.find(isKeptFromUs);
  if (before !== undefined && replaced !== undefined) {
    sayOnce(
      `${replaced} has been replaced, and the jail keeps the new one from us: ${host} is taken to be where it was, ` +
        `at ${before.join(", ")}; only a restart looks it up again`,
    );
    return before;
  }
  const found = await lookup(host, { all: true });
  // A name that has an address twice has it for two kinds of sockets.
  const addresses = [...new Set(found.map(({ address }) => address))];
  known.set(host, addresses);
  return addresses;
}

function isKeptFromUs(path: string): boolean {
  try {
    closeSync(openSync(path, "r"));
    return false;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EACCES";
  }
}

function sayOnce(what: string): void {
  if (said.has(what)) return;
  said.add(what);
  moduleLogger("names").warn(what);
}
