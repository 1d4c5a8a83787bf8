// A command as a service: tells the service manager that started it, if one did, that it is ready, how it is, and
// that it is alive.
import { onAbort } from "../../src/core/deadline.ts";
import { moduleLogger } from "../../src/core/log.ts";
import { ServiceManager } from "../../src/native/service-manager.ts";

const logger = moduleLogger("service");

/** A message that was lost is made good after this time. */
const PERIOD_MS = 10_000;

/** Whether what serves has shown life; it has `patienceMs` for that. */
type ServiceAnswers = (patienceMs: number) => boolean;

export class Service implements Disposable {
  readonly #manager: ServiceManager | undefined;
  readonly #cleanup = new DisposableStack();
  #status: (() => string) | undefined;
  #answers: ServiceAnswers = () => true;
  #isStopping = false;

  constructor(stop: AbortSignal) {
    this.#manager = ServiceManager.take(process.env);
    if (this.#manager === undefined) return;
    const { watchdogMs } = this.#manager;
    const period = Math.min(PERIOD_MS, (watchdogMs ?? Infinity) / 3);
    const beat = watchdogMs === undefined ? (): string[] => [] : (): string[] => this.#beat(watchdogMs);
    const timer = setInterval(() => this.#tell(beat()), period);
    this.#cleanup.defer(() => clearInterval(timer));
    this.#cleanup.use(
      onAbort(stop, () => {
        this.#isStopping = true;
        this.#tell([]);
      }),
    );
  }

  /** Where a service manager gets our messages: at a socket that is a file, or has a name in our network only. */
  get heardAt(): "file" | "name" | undefined {
    return this.#manager && (this.#manager.isAbstract ? "name" : "file");
  }

  /** From now on we do what we were started for; `status` is one line about it. */
  ready(status: () => string, answers: ServiceAnswers): void {
    this.#status = status;
    this.#answers = answers;
    this.#tell([]);
  }

  /** What a successor needs so that it is the same service. */
  get environment(): Readonly<Record<string, string>> {
    return this.#manager?.environment ?? {};
  }

  /** From now on that process is the service. */
  handTo(pid: number): void {
    this.#manager?.notify([`MAINPID=${pid}`]);
  }

  /** There may be another status. */
  changed(): void {
    if (this.#status !== undefined) this.#tell([]);
  }

  [Symbol.dispose](): void {
    this.#cleanup.dispose();
  }

  #beat(watchdogMs: number): string[] {
    if (this.#answers(watchdogMs)) return ["WATCHDOG=1"];
    logger.warn("a data plane does not answer");
    return [];
  }

  #tell(more: readonly string[]): void {
    const state = this.#isStopping ? ["STOPPING=1"] : this.#status === undefined ? [] : ["READY=1"];
    const status = this.#status === undefined ? [] : [`STATUS=${this.#status()}`];
    const lines = [...state, ...status, ...more];
    const failure = lines.length === 0 ? undefined : this.#manager?.notify(lines);
    if (failure !== undefined) logger.warn(`cannot tell the service manager: ${failure}`);
  }
}
