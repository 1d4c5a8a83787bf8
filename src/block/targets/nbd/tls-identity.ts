// Who we are to an NBD server, and whom we trust: the files of tls-certificates=. They are read again for each
// connection, because they are renewed. In a jail that may be forbidden, for a link that leads out of the directory or
// a key of another user's. Then what was read before the jail counts: the disk would wait for its server for ever.
import { readFileSync, realpathSync } from "node:fs";
import { isIP } from "node:net";
import { join } from "node:path";
import type { ConnectionOptions } from "node:tls";
import { moduleLogger } from "../../../core/log.ts";
import type { NbdTls } from "./uri.ts";

const CA = "ca-cert.pem";
const CERTIFICATE = "client-cert.pem";
const KEY = "client-key.pem";

const logger = moduleLogger("nbd");

/** What a process has to be able to read: the directory, and where the links in it lead. */
export function filesOfIdentity(certificates: string): string[] {
  const files = [CA, CERTIFICATE, KEY].flatMap((name) => {
    try {
      return realpathSync(join(certificates, name));
    } catch {
      // What is missing and needed was said when the server was asked for its export.
      return [];
    }
  });
  return [certificates, ...files];
}

export class TlsIdentity {
  readonly #tls: NbdTls;
  /** What was read last, by the first of the files that belong together. */
  readonly #kept = new Map<string, readonly Buffer[]>();
  readonly #said = new Set<string>();

  constructor(tls: NbdTls) {
    this.#tls = tls;
  }

  /** Throws when a file that has to be there cannot be read, and never could. */
  get options(): ConnectionOptions {
    const { hostname, certificates } = this.#tls;
    const servername = isIP(hostname) === 0 ? hostname : "";
    // Said explicitly, because the environment can change the default.
    const named = { rejectUnauthorized: true, host: hostname, servername };
    if (certificates === undefined) return named;
    const [ca] = this.#read(certificates, CA);
    const [cert, key] = this.#read(certificates, CERTIFICATE, KEY);
    return cert === undefined ? { ...named, ca } : { ...named, ca, cert, key };
  }

  /** A certificate and its key are of the same age. Empty if there is no certificate, and none has to be there. */
  #read(dir: string, ...names: readonly [string, ...string[]]): readonly Buffer[] {
    const [first] = names;
    try {
      return this.#keep(
        first,
        names.map((name) => readFileSync(join(dir, name))),
      );
    } catch (error) {
      const { code, path = dir } = error as NodeJS.ErrnoException;
      if (first === CERTIFICATE && code === "ENOENT" && path === join(dir, CERTIFICATE))
        return this.#keep(first, []);
      const kept = this.#kept.get(first);
      if (kept === undefined || code !== "EACCES") throw error;
      this.#say(
        `${path} can no longer be read, and counts as it was: only a restart sees it renewed (docs/jail.md)`,
      );
      return kept;
    }
  }

  #keep(first: string, files: readonly Buffer[]): readonly Buffer[] {
    this.#kept.set(first, files);
    return files;
  }

  #say(what: string): void {
    if (this.#said.has(what)) return;
    this.#said.add(what);
    logger.warn(what);
  }
}
