// What a service manager wants to hear from a service (sd_notify(3)): when it is ready, how it is, that it is
// alive.
import { errnoText, shim } from "./shim.ts";

type Environment = Record<string, string | undefined>;

export class ServiceManager {
  /** It expects WATCHDOG=1 at least this often; undefined if it does not. */
  readonly watchdogMs: number | undefined;
  /** The variables by which another process finds it. */
  readonly environment: Readonly<Record<string, string>>;
  readonly #address: Uint8Array;

  private constructor(socket: string, watchdogMs: number | undefined) {
    this.#address = new TextEncoder().encode(socket.replace(/^@/, "\0"));
    this.watchdogMs = watchdogMs;
    const watchdog = watchdogMs === undefined ? {} : { WATCHDOG_USEC: String(watchdogMs * 1000) };
    this.environment = { NOTIFY_SOCKET: socket, ...watchdog };
  }

  /**
   * The one that started us and listens for unix datagrams, if there is one. Its variables are removed, because
   * they are not for our children.
   */
  static take(env: Environment): ServiceManager | undefined {
    const { NOTIFY_SOCKET: socket, WATCHDOG_USEC: period, WATCHDOG_PID: watched } = env;
    for (const name of ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"]) delete env[name];
    if (socket === undefined || !/^[/@]./s.test(socket)) return undefined;
    const isWatched = (watched ?? String(process.pid)) === String(process.pid);
    const watchdogMs = Number(period) / 1000;
    return new ServiceManager(socket, isWatched && watchdogMs > 0 ? watchdogMs : undefined);
  }

  /** Its socket has a name in our network instead of a file. */
  get isAbstract(): boolean {
    return this.#address[0] === 0;
  }

  /** Sends lines such as READY=1; returns why they could not be sent. */
  notify(lines: readonly string[]): string | undefined {
    const text = new TextEncoder().encode(lines.join("\n"));
    const sent = shim.xt_datagram_send(this.#address, this.#address.length, text, text.length);
    return sent < 0 ? errnoText(sent) : undefined;
  }
}
