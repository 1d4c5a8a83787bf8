// Other people's NBD servers, unmodified, each on a unix socket in a directory of its own.
import { existsSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { removeDirectory, temporaryDirectory } from "./temporary.ts";

export const EXPORT_BYTES = 8 * 1024 * 1024;

/** A server that listens, until it is disposed of. */
export class NbdServer implements AsyncDisposable {
  readonly dir = temporaryDirectory();
  readonly #command: readonly string[];
  #child: Bun.Subprocess<"ignore", "ignore", "pipe">;

  private constructor(commandIn: (dir: string) => readonly string[]) {
    writeFileSync(join(this.dir, "disk.img"), new Uint8Array(EXPORT_BYTES).fill(1));
    this.#command = commandIn(this.dir);
    this.#child = this.#spawn();
  }

  /** `commandIn` returns the server's command line. It listens at `nbd.sock` and writes its number to `pid`. */
  static async start(commandIn: (dir: string) => readonly string[]): Promise<NbdServer> {
    const server = new NbdServer(commandIn);
    await server.#untilReady();
    return server;
  }

  /** Starts it again after `kill`, with what its image holds. */
  async restart(): Promise<void> {
    for (const left of ["pid", "nbd.sock"]) rmSync(join(this.dir, left), { force: true });
    this.#child = this.#spawn();
    await this.#untilReady();
  }

  #spawn(): Bun.Subprocess<"ignore", "ignore", "pipe"> {
    return Bun.spawn([...this.#command], { stdio: ["ignore", "ignore", "pipe"] });
  }

  async #untilReady(): Promise<void> {
    // All of them write it once they listen, but for nbd-server.
    while (!existsSync(join(this.dir, "pid"))) {
      if ((this.#child.exitCode ?? 0) !== 0) {
        await this[Symbol.asyncDispose]();
        throw new Error(await this.#child.stderr.text());
      }
      await Bun.sleep(5);
    }
  }

  /** Where its export `vm 7` is. */
  get uri(): string {
    return `nbd+unix:///vm%207?socket=${join(this.dir, "nbd.sock")}`;
  }

  /** The bytes of its image. */
  get image(): Buffer {
    return readFileSync(join(this.dir, "disk.img"));
  }

  /** How many blocks of 512 bytes its image has on the file system. */
  get imageBlocks(): number {
    return statSync(join(this.dir, "disk.img")).blocks;
  }

  /** What nbdkit's log filter, or a script of it, wrote. */
  get log(): string {
    return readFileSync(join(this.dir, "log"), "utf8");
  }

  async kill(): Promise<void> {
    // nbd-server has gone into the background. Asked to end, it would remove files while we do. Its process for a TLS
    // connection does not always end with it.
    if (this.#child.exitCode === 0)
      process.kill(-Number(readFileSync(join(this.dir, "pid"), "utf8")), "SIGKILL");
    this.#child.kill("SIGKILL");
    await this.#child.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    removeDirectory(this.dir);
  }
}

/** Without a connection, which the server would take for a client. Source: proc_net(5), the flag is SO_ACCEPTCON. */
function isListening(path: string): boolean {
  const sockets = readFileSync("/proc/net/unix", "utf8").split("\n");
  return sockets.some((line) => line.endsWith(` ${path}`) && line.split(" ")[3] === "00010000");
}

export function qemuNbd(...options: readonly string[]): Promise<NbdServer> {
  return NbdServer.start((dir) => [
    "qemu-nbd",
    "--format=raw",
    "--persistent",
    "--shared=8",
    "--discard=unmap",
    "--export-name=vm 7",
    `--socket=${join(dir, "nbd.sock")}`,
    `--pid-file=${join(dir, "pid")}`,
    ...options,
    join(dir, "disk.img"),
  ]);
}

export function storageDaemon(): Promise<NbdServer> {
  return NbdServer.start((dir) => [
    "qemu-storage-daemon",
    "--pidfile",
    join(dir, "pid"),
    "--blockdev",
    `driver=file,node-name=disk,filename=${join(dir, "disk.img")},discard=unmap`,
    "--nbd-server",
    `addr.type=unix,addr.path=${join(dir, "nbd.sock")},max-connections=9`,
    "--export",
    "type=nbd,id=vm,node-name=disk,name=vm 7,writable=on",
  ]);
}

/**
 * nbd-server, which has neither GO with block sizes nor structured replies. `certificates`: a directory of them; then
 * it wants TLS, and a certificate of the client.
 */
export async function nbdServer(certificates?: string): Promise<NbdServer> {
  const tls =
    certificates === undefined
      ? []
      : [
          "force_tls = true",
          `certfile = ${join(certificates, "server-cert.pem")}`,
          `keyfile = ${join(certificates, "server-key.pem")}`,
          `cacertfile = ${join(certificates, "ca-cert.pem")}`,
        ];
  const server = await NbdServer.start((dir) => {
    const config = join(dir, "config");
    const lines = [
      "[generic]",
      `unixsock = ${join(dir, "nbd.sock")}`,
      ...tls,
      "[vm 7]",
      `exportname = ${join(dir, "disk.img")}`,
      `filesize = ${EXPORT_BYTES}`,
      "flush = true",
      "fua = true",
      "trim = true",
    ];
    writeFileSync(config, `${lines.join("\n")}\n`);
    return ["nbd-server", "-C", config, "-p", join(dir, "pid")];
  });
  // It writes its number first, and listens then.
  while (!isListening(join(server.dir, "nbd.sock"))) await Bun.sleep(5);
  return server;
}

/**
 * `filters`: the nearest to the client first. `args`: the plugin's, then all of the filters'. With --port in `options`
 * it listens there instead.
 */
export function nbdkit(
  filters: readonly string[],
  args: (dir: string) => readonly string[],
  ...options: readonly string[]
): Promise<NbdServer> {
  return NbdServer.start((dir) => [
    "nbdkit",
    "--foreground",
    ...(options.some((it) => it.startsWith("--port")) ? [] : ["--unix", join(dir, "nbd.sock")]),
    "--pidfile",
    join(dir, "pid"),
    ...filters.map((filter) => `--filter=${filter}`),
    ...options,
    ...args(dir),
  ]);
}
