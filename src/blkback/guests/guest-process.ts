// The process of one guest, as `watch` sees it: orders go in, checked reports come out, and its end has a reason.
import { closeSync } from "node:fs";
import { endsWithin } from "../../core/deadline.ts";
import { describeError, XentoolError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import type { Domid } from "../../core/types.ts";
import { sendDescriptors } from "../../native/descriptors.ts";
import type { DeviceEvent } from "../device/device-events.ts";
import { LEAVING_PATIENCE_MS } from "../bounds.ts";
import { KeptImages, type GuestDevices, type Reply } from "./kept-images.ts";
import {
  encodeLine,
  linesOf,
  parseReport,
  type Ask,
  type GuestOrder,
  type GuestSettings,
  type Trouble,
} from "./messages.ts";

const logger = moduleLogger("watch");

/** A process with more reports in a second is killed: reading them would leave no time for the other guests. */
const REPORTS_A_SECOND = 2000;

/** More than the disks of any guest ask for at the same time. Each question takes memory until it is answered. */
const UNANSWERED_MAX = 4096;

/** A process that leaves more of our orders and answers unread is killed: we would have to keep them all. */
const UNREAD_BYTES_MAX = 1 << 20;

/** What we use of a process of our own executable in the role of a guest's server. */
export interface GuestChild {
  readonly stdin: { write(text: string): unknown; flush(): unknown; end(): unknown };
  readonly stdout: ReadableStream<Uint8Array>;
  /** Where it takes descriptors; ours to close. */
  readonly descriptors: number;
  /** Its way to xenstore; ours to close. */
  readonly xenstore: number;
  readonly exited: Promise<number>;
  readonly signalCode: NodeJS.Signals | number | null;
  kill(signal: NodeJS.Signals): void;
}

/** Starts such a process. Only cmd/ knows how, so it hands this function down. Throws when there can be none. */
export type SpawnGuest = (frontend: Domid) => GuestChild;

/** What `watch` does for the process. */
export interface ProcessGround extends GuestDevices {
  /** Passes what comes from its socket on to xenstore, as far as it may go there. Closes the socket at the end. */
  readonly connectStore: (socket: number) => Promise<Closable>;
  /** Removes what it left and nobody needs, once it is gone. */
  readonly tidyUp: () => Promise<void>;
}

interface Closable {
  close(): void;
}

export interface GuestListener {
  readonly onEvent: (devid: number, event: DeviceEvent) => void;
  /** Called when it serves another number of disks, or has ended as it was asked to. */
  readonly onChange: () => void;
}

export class GuestProcess {
  /** Disks that it serves or is about to serve. */
  disks = 0;
  /** Resolves, once the process is gone and its images are closed, to how it ended: "status 1", "SIGKILL". */
  readonly ended: Promise<string>;
  /** Resolves when it could serve at once, or is gone. */
  readonly prepared: Promise<unknown>;
  /** Resolves when the disks that it found when it began are served as far as they can be, or it is gone. */
  readonly settled: Promise<unknown>;
  /** Resolves when it has left its disks, or is gone. */
  readonly left: Promise<unknown>;
  readonly #prepare = Promise.withResolvers<void>();
  readonly #settle = Promise.withResolvers<void>();
  readonly #leave = Promise.withResolvers<void>();
  readonly #child: GuestChild;
  readonly #images: KeptImages;
  readonly #store: Promise<Closable>;
  readonly #tidyUp: () => Promise<void>;
  readonly #listener: GuestListener;
  readonly #name: string;
  #isEnding = false;
  #isKilled = false;
  #isGone = false;
  #reports = 0;
  #unanswered = 0;
  #unreadBytes = 0;
  #countedSinceMs = -Infinity;
  /** When it last said that it lives, or was first asked. */
  #heardAtMs: number | undefined;

  constructor(
    settings: GuestSettings,
    ground: ProcessGround,
    spawnGuest: SpawnGuest,
    listener: GuestListener,
  ) {
    this.#name = `the process of domain ${settings.frontend}`;
    this.#listener = listener;
    this.#child = spawnGuest(settings.frontend);
    this.#images = new KeptImages(ground);
    this.#tidyUp = ground.tidyUp;
    this.#store = ground.connectStore(this.#child.xenstore);
    this.#store.catch((error: unknown) => this.#kill(`has no xenstore (${describeError(error)})`));
    this.ended = this.#child.exited.then((status) => this.#exited(status));
    this.prepared = Promise.race([this.#prepare.promise, this.ended]);
    this.settled = Promise.race([this.#settle.promise, this.ended]);
    this.left = Promise.race([this.#leave.promise, this.ended]);
    void this.#listen();
    this.#order({ order: "prepare", settings });
  }

  get isEnding(): boolean {
    return this.#isEnding;
  }

  /** Has it serve the disks of its guest. */
  serve(): void {
    this.#order({ order: "serve" });
  }

  /** Has it leave its disks to the next server, and end. One that does not is killed: journals are for that, too. */
  end(): void {
    if (this.#isEnding) return;
    this.#isEnding = true;
    this.#order({ order: "end" });
    const late = setTimeout(() => this.#kill("does not end"), LEAVING_PATIENCE_MS);
    void this.ended.then(() => clearTimeout(late));
  }

  /** Kills it if it has not said for `patienceMs` that it lives, and asks it again. */
  tend(patienceMs: number): void {
    this.#heardAtMs ??= performance.now();
    if (performance.now() - this.#heardAtMs > patienceMs) this.#kill("does not answer");
    this.#order({ order: "alive" });
  }

  async #exited(status: number): Promise<string> {
    this.#isGone = true;
    closeSync(this.#child.descriptors);
    await this.#store.then(
      (store) => store.close(),
      () => {},
    );
    // Storage that does not answer keeps its image open, and not the next process away.
    await endsWithin(LEAVING_PATIENCE_MS, this.#images.close());
    await endsWithin(LEAVING_PATIENCE_MS, this.#tidyUp());
    return String(this.#child.signalCode ?? `status ${status}`);
  }

  async #listen(): Promise<void> {
    try {
      for await (const line of linesOf(this.#child.stdout)) {
        if (this.#isTooMuch()) this.#kill("says too much");
        else this.#take(line);
        if (this.#isKilled) return;
      }
    } catch {
      this.#kill("writes without end");
    }
  }

  #isTooMuch(): boolean {
    const nowMs = performance.now();
    if (nowMs - this.#countedSinceMs >= 1000) [this.#reports, this.#countedSinceMs] = [0, nowMs];
    return ++this.#reports > REPORTS_A_SECOND;
  }

  #take(line: string): void {
    const report = parseReport(line);
    switch (report?.report) {
      case "alive":
        this.#heardAtMs = performance.now();
        return;
      case "prepared":
        return this.#prepare.resolve();
      case "settled":
        return this.#settle.resolve();
      case "left":
        return this.#leave.resolve();
      case "disks":
        this.disks = report.count;
        return this.#listener.onChange();
      case "event":
        return this.#listener.onEvent(report.devid, report.event);
      case "ask":
        return void this.#hearQuestion(report);
      default:
        this.#kill("says what makes no sense");
    }
  }

  async #hearQuestion(ask: Ask): Promise<void> {
    if (++this.#unanswered > UNANSWERED_MAX) return this.#kill("asks for too much");
    await this.#answer(ask);
    this.#unanswered--;
  }

  async #answer(ask: Ask): Promise<void> {
    if (this.#isGone) return;
    const reply: Reply = (fds, more) => {
      if (fds.length > 0) {
        if (this.#isGone) throw new XentoolError("cancelled", "its process is gone");
        sendDescriptors(this.#child.descriptors, ask.ask, fds);
      }
      this.#order({ order: "answer", ask: ask.ask, descriptors: fds.length, ...more });
    };
    const onTrouble = (trouble: Trouble): void => this.#order({ order: "trouble", ...trouble });
    await this.#images.answer(ask, reply, onTrouble);
  }

  #kill(why: string): void {
    if (this.#isKilled) return;
    this.#isKilled = true;
    logger.error(`${this.#name} ${why}: it is killed`);
    this.#child.kill("SIGKILL");
  }

  /** Does nothing if the process is gone; `ended` resolves then. */
  #order(order: GuestOrder): void {
    const { stdin } = this.#child;
    const line = encodeLine(order);
    this.#unreadBytes += line.length;
    const isRead = (): void => void (this.#unreadBytes -= line.length);
    try {
      void Promise.resolve(stdin.write(line)).catch(() => {});
      void Promise.resolve(stdin.flush()).then(isRead, () => {});
    } catch {
      // As above.
    }
    if (this.#unreadBytes > UNREAD_BYTES_MAX) this.#kill("does not read what it is told");
  }
}
