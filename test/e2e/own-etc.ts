// An /etc of a program's own, whose names of hosts a test gives and replaces. Root is needed.
import { copyFileSync, mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export class OwnEtc {
  readonly #dir: string;

  /** `dir` is made. Hosts have the addresses that `hosts` has for their names, and no others. */
  constructor(dir: string, hosts: Readonly<Record<string, readonly string[]>>) {
    this.#dir = dir;
    mkdirSync(dir);
    copyFileSync("/etc/passwd", join(dir, "passwd"));
    writeFileSync(join(dir, "nsswitch.conf"), "hosts: files\n");
    // Without it, a name has the first of its addresses only.
    writeFileSync(join(dir, "host.conf"), "multi on\n");
    this.replaceHosts(hosts);
  }

  /** `command`, to be run with it. */
  inside(command: readonly string[]): string[] {
    const script = `mount --bind '${this.#dir}' /etc && exec "$@"`;
    return ["unshare", "--mount", "sh", "-c", script, "sh", ...command];
  }

  /** As editors do it: by a file with another name, which then gets this one. */
  replaceHosts(hosts: Readonly<Record<string, readonly string[]>>): void {
    const lines = Object.entries(hosts).flatMap(([name, all]) => all.map((it) => `${it} ${name}\n`));
    const made = join(this.#dir, "hosts~");
    writeFileSync(made, lines.join(""));
    renameSync(made, join(this.#dir, "hosts"));
  }
}
