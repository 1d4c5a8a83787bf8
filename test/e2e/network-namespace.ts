// A network of its own, where programs of a test reach each other by TCP at 127.0.0.1, and which can be cut: nothing
// passes then, neither data nor the end of a connection nor an error, as when a host vanishes. Root is needed.
import { readUntil, run, start, type Child } from "../support/process.ts";

/** Sets the flags of `lo`; in Perl, because it is on every Debian. */
const SET_FLAGS = `use Socket;
socket(my $s, AF_INET, SOCK_DGRAM, 0) or die "socket: $!";
ioctl($s, 0x8914, pack("Z16 s x22", "lo", $ARGV[0])) or die "ioctl: $!";`;

export class NetworkNamespace implements AsyncDisposable {
  readonly #holder: Child;

  private constructor(holder: Child) {
    this.#holder = holder;
  }

  static async start(): Promise<NetworkNamespace> {
    const holder = start(["unshare", "--net", "sh", "-c", "echo there; exec sleep infinity"]);
    await readUntil(holder.stdout, "there");
    const namespace = new NetworkNamespace(holder);
    await namespace.join();
    return namespace;
  }

  /** `command`, to be run in it. */
  inside(command: readonly string[]): string[] {
    return ["nsenter", `--net=/proc/${this.#holder.pid}/ns/net`, ...command];
  }

  cut(): Promise<void> {
    return this.#setFlags(0);
  }

  join(): Promise<void> {
    return this.#setFlags(1);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#holder.kill("SIGKILL");
    await this.#holder.exited;
  }

  async #setFlags(flags: number): Promise<void> {
    const { status, stderr } = await run(this.inside(["perl", "-e", SET_FLAGS, String(flags)]));
    if (status !== 0) throw new Error(stderr);
  }
}
