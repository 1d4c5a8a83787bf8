// Runs `xentool vchan` as people do: a simulated host in the test's process, and the command line in
// processes of its own, in one domain or another.
import { expect } from "bun:test";
import { fileURLToPath } from "node:url";
import { SimHost, type SimHostOptions } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const XENTOOL = fileURLToPath(new URL("../../cmd/xentool.ts", import.meta.url));

export interface Finished {
  readonly status: number;
  readonly stdout: Buffer;
  readonly stderr: string;
}

/** A started command. Its output is collected from the start. */
export class Running {
  readonly child: Bun.Subprocess<"pipe", "pipe", "pipe">;
  readonly finished: Promise<Finished>;
  readonly #chunks: Uint8Array[] = [];
  #length = 0;
  #waiting: { length: number; resolve: () => void } | undefined;

  constructor(child: Bun.Subprocess<"pipe", "pipe", "pipe">) {
    this.child = child;
    const stderr = new Response(child.stderr).text();
    this.finished = Promise.all([child.exited, this.#collect(), stderr]).then(([status, stdout, words]) => ({
      status,
      stdout,
      stderr: words,
    }));
  }

  /** Resolves once this many bytes of standard output have come. */
  received(length: number): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting = { length, resolve };
      this.#look();
    });
  }

  get pid(): number {
    return this.child.pid;
  }

  /** Writes to standard input, and ends it unless more will come. */
  async feed(bytes: Uint8Array | string, more = false): Promise<void> {
    void this.child.stdin.write(bytes);
    await this.child.stdin.flush();
    if (!more) await this.child.stdin.end();
  }

  async #collect(): Promise<Buffer> {
    for await (const chunk of this.child.stdout) {
      this.#chunks.push(chunk);
      this.#length += chunk.length;
      this.#look();
    }
    return Buffer.concat(this.#chunks);
  }

  #look(): void {
    if (this.#waiting !== undefined && this.#length >= this.#waiting.length) this.#waiting.resolve();
  }
}

export class VchanCli implements AsyncDisposable {
  readonly host: SimHost;
  /** For the test's files and sockets. */
  readonly dir = temporaryDirectory();
  readonly #started: Running[] = [];

  private constructor(host: SimHost) {
    this.host = host;
  }

  static async start(options: SimHostOptions = {}): Promise<VchanCli> {
    return new VchanCli(await SimHost.start({ domains: 3, ...options }));
  }

  /** What a process needs in its environment to be one of domain `domid`. */
  env(domid: number): Record<string, string> {
    return {
      ...(process.env as Record<string, string>),
      XENTOOL_SIM: this.host.dir,
      XENTOOL_DOMID: `${domid}`,
    };
  }

  /** The command line of `xentool vchan ARGS`. */
  argv(...args: readonly string[]): string[] {
    return [process.execPath, XENTOOL, "vchan", ...args];
  }

  /** Starts `xentool vchan ARGS` in domain `domid`. */
  run(domid: number, ...args: readonly string[]): Running {
    const child = Bun.spawn(this.argv(...args), {
      env: this.env(domid),
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
    });
    const running = new Running(child);
    this.#started.push(running);
    return running;
  }

  /** Starts any other command with xentool's environment of domain `domid`. */
  spawn(domid: number, argv: readonly string[], env: Readonly<Record<string, string>> = {}): Running {
    const child = Bun.spawn([...argv], {
      env: { ...this.env(domid), ...env },
      cwd: this.dir,
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
    });
    const running = new Running(child);
    this.#started.push(running);
    return running;
  }

  /** Waits until a server has published its keys (or, with false, until it has withdrawn them). */
  async published(server: number, client: number, name: string, present = true): Promise<void> {
    using platform = this.host.platform(0);
    using xenstore = await Xenstore.connect(platform);
    const path = `/local/domain/${server}/data/vchan/${client}/${name}/event-channel`;
    await xenstore.waitFor(path, (value) => (value !== null) === present, { timeoutMs: 10_000 });
  }

  /** Ends what still runs and makes sure that nothing is left in the host. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const { child } of this.#started) child.kill(9);
    await Promise.all(this.#started.map(({ finished }) => finished));
    const leaks = await this.host.settle();
    await this.host.stop();
    removeDirectory(this.dir);
    expect(leaks).toEqual([]);
  }
}

/** `stderr` without the lines about what is waited for, of which there are as many as the ends happen to need. */
export function withoutWaits(stderr: string): string {
  return stderr.replaceAll(/^xentool: waiting for .*\n/gm, "");
}

/** Bytes that are not what any other seed's are. */
export function noise(seed: number, length: number): Buffer {
  const words = new Uint32Array(Math.ceil(length / 4));
  let state = (seed * 2_654_435_761 + 1) >>> 0;
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[i] = state >>> 0;
  }
  return Buffer.from(words.buffer, 0, length);
}

export function checksum(bytes: Uint8Array): string {
  return Bun.hash(bytes).toString(16);
}
