// `watch` with a process for each guest: follows xenstore only as far as to know which guests have disks of ours, and
// has a process of its own serve each of them (served-guest.ts). So what a guest makes of its server, it makes of its
// own server alone: when that dies, another one takes the guest's rings over, and no other guest notices.
import { closeSync } from "node:fs";
import { join } from "node:path";
import { rememberIn } from "../../block/image/known.ts";
import type { OpenedImage } from "../../block/image/opened.ts";
import { endsWithin } from "../../core/deadline.ts";
import { XentoolError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import { someAtATime } from "../../core/some-at-a-time.ts";
import type { Domid } from "../../core/types.ts";
import type { SpawnWorker } from "../../plane/plane.ts";
import type { Platform, XenstoreEndpoint } from "../../platform/platform.ts";
import type { Unwatch, Xenstore } from "../../xenstore/client.ts";
import { backendDir, describeDevice, type DeviceAddress } from "../address.ts";
import { lockForGuest } from "../device/device-lock.ts";
import { ImageThreads } from "../image/image-threads.ts";
import type { JailMode } from "../../platform/jail.ts";
import { guestNamed, namesIn } from "../device/device-directories.ts";
import { isOurDevice } from "../watch/our-devices.ts";
import { tidyAfterProcess } from "../device/remains.ts";
import { guestDir, holdGuestDir, removeGuestDir, type HeldDir } from "../device/state-directory.ts";
import { openWatchedImage } from "../image/watched-image.ts";
import type { DiskServer, WatchOptions } from "../watch/watch.ts";
import { GuestProcess, type GuestListener, type ProcessGround, type SpawnGuest } from "./guest-process.ts";
import type { GuestSettings } from "./messages.ts";
import { usersOfGuests, type UserOf } from "./guest-users.ts";
import { untilReady, type Predecessor, type Successor } from "./handover.ts";
import { mayAskStore } from "./store-rules.ts";
import { StoreRelay } from "./store-relay.ts";
import { SupervisedGuest } from "./supervised-guest.ts";

const logger = moduleLogger("watch");

/** A guest, a device of its, or a key that tells whether the device is ours. */
const LOOKED_AT = /^\/([0-9]+)(?:\/[0-9]+(?:\/(?:frontend|params|mode|script))?)?$/;

/** Processes that get ready at the same time in a handover. Meanwhile guests work. */
const PREPARING = Math.max(1, navigator.hardwareConcurrency);
/** Guests that wait at the same time in a handover: each wants a processor at once, and those that work want some. */
const AT_A_TIME = Math.max(1, navigator.hardwareConcurrency >> 1);
/** A guest's process that takes longer keeps no other guest from being handed over. */
const SLOW_MS = 500;

export interface SupervisorOptions extends Omit<WatchOptions, "jailed"> {
  /** Of the processes. */
  readonly jail: JailMode;
  /** The process of domain N is this user plus N in its jail; 0: root. */
  readonly uidBase: number;
}

export interface Spawn {
  readonly guest: SpawnGuest;
  readonly worker: SpawnWorker;
}

export class GuestSupervisor implements DiskServer {
  /** Rejects when xenstored is gone. */
  readonly failed: Promise<never>;
  readonly #xenstore: Xenstore;
  readonly #options: SupervisorOptions;
  readonly #settings: Omit<GuestSettings, "frontend" | "user">;
  readonly #platform: Platform;
  readonly #userOf: UserOf | undefined;
  readonly #spawn: Spawn;
  readonly #storage: ImageThreads;
  readonly #backend: Domid;
  readonly #endpoint: XenstoreEndpoint;
  readonly #root: string;
  readonly #guests = new Map<Domid, SupervisedGuest>();
  /** Guests that a successor has. */
  readonly #handed = new Set<Domid>();
  /** Ends of their processes. */
  readonly #ending: Promise<void>[] = [];
  /** There is a predecessor that has guests, except for those that we were told to take. */
  #isSuccessor = false;
  readonly #taken = new Set<Domid>();
  #unwatch: Unwatch | undefined;
  #stopped = false;

  private constructor(
    platform: Platform,
    xenstore: Xenstore,
    options: SupervisorOptions,
    spawn: Spawn,
    userOf: UserOf | undefined,
  ) {
    this.#userOf = userOf;
    this.#xenstore = xenstore;
    this.#options = options;
    this.#spawn = spawn;
    // A guest that reboots is another domain, and may be served by another `watch`.
    const memory = join(options.statsDir, "served-raw");
    rememberIn(memory);
    this.#storage = new ImageThreads(spawn.worker, memory);
    this.#platform = platform;
    this.#backend = platform.domid;
    this.#endpoint = platform.xenstore;
    const { onEvent: _event, onCount: _count, frontend: _frontend, uidBase: _uids, ...rest } = options;
    // The kernel's device has a thread wait for each connection, and this process has few. It has the rights of our
    // domain, which is not domain 0 then.
    this.#settings = {
      ...rest,
      platform: platform.descriptor,
      isRelayed: platform.xenstore.kind === "socket",
    };
    this.#root = `/local/domain/${platform.domid}/backend/${options.kind}`;
    const { promise, reject } = Promise.withResolvers<never>();
    promise.catch(() => {});
    xenstore.onClose(reject);
    this.failed = promise;
  }

  /**
   * Serves the devices that exist, including those whose server died, and those created later; those that a
   * `predecessor` serves when it hands them over. Throws `environment` when this host lacks what a strict jail needs.
   */
  static async start(
    platform: Platform,
    xenstore: Xenstore,
    options: SupervisorOptions,
    spawn: Spawn,
    predecessor?: Predecessor,
  ): Promise<GuestSupervisor> {
    const userOf = usersOfGuests(platform.descriptor, options);
    const supervisor = new GuestSupervisor(platform, xenstore, options, spawn, userOf);
    if (predecessor !== undefined) await supervisor.#follow(predecessor);
    supervisor.#unwatch = await xenstore.watch(supervisor.#root, (path) => supervisor.#changed(path));
    return supervisor;
  }

  get deviceCount(): number {
    return this.#processes.reduce((sum, { disks }) => sum + disks, 0);
  }

  /** A process that does not answer for `patienceMs` is killed. The others go on. */
  answers(patienceMs: number): boolean {
    for (const process of this.#processes) process.tend(patienceMs);
    return true;
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#unwatch?.();
    const ending = [...this.#guests.values()].map((guest) => guest.end());
    await Promise.all([...ending, ...this.#ending]);
    this.#storage[Symbol.dispose]();
  }

  /**
   * Lets guest after guest go, some at a time, and has the successor take each. Guests that are new by then are served
   * until `stop`.
   */
  async handOver(successor: Successor): Promise<void> {
    await untilReady(successor);
    const takes: Promise<void>[] = [];
    let isOver = false;
    const hand = async ([frontend, guest]: readonly [Domid, SupervisedGuest]): Promise<void> => {
      if (isOver) return;
      this.#guests.delete(frontend);
      this.#handed.add(frontend);
      this.#ending.push(guest.end());
      const left = guest.leave();
      const taken = left.then(() => {
        logger.info(`domain ${frontend}: its disks are let go`);
        return successor.take(frontend);
      });
      taken.catch(() => {});
      takes.push(taken);
      if (await endsWithin(SLOW_MS, left)) await taken;
    };
    const handed = someAtATime(this.#guests, AT_A_TIME, hand)
      .then(() => Promise.all(takes))
      .then(() => Promise.all(this.#ending));
    try {
      // Its end is noticed at once, also while a guest's process takes its time to leave.
      await Promise.race([handed, successor.gone]);
      await successor.over();
    } catch (error) {
      isOver = true;
      const back = [...this.#handed];
      this.#handed.clear();
      for (const frontend of back) void this.#look(String(frontend));
      throw error;
    }
  }

  /** Prepares a process for each guest, and takes the guests as they are let go. */
  async #follow(predecessor: Predecessor): Promise<void> {
    this.#isSuccessor = true;
    void predecessor.over.then(() => {
      this.#isSuccessor = false;
      for (const guest of this.#guests.values()) guest.release();
    });
    const names = await namesIn(this.#xenstore, this.#root);
    // Once the predecessor is gone, guests wait: then nothing holds them up that is merely better done before.
    const untilAlone = (work: Promise<void>): Promise<void> => Promise.race([work, predecessor.over]);
    await someAtATime(names, PREPARING, (name) => untilAlone(this.#prepare(name)));
    await untilAlone(this.#storage.prepare());
    predecessor.ready(async (frontend) => {
      this.#taken.add(frontend);
      // At once: its disks wait.
      this.#guests.get(frontend)?.release();
      await this.#look(String(frontend));
      await this.#guests.get(frontend)?.process?.settled;
    });
  }

  async #prepare(name: string): Promise<void> {
    await this.#look(name);
    const frontend = guestNamed(name);
    if (frontend !== undefined) await this.#guests.get(frontend)?.process?.prepared;
  }

  get #processes(): GuestProcess[] {
    return [...this.#guests.values()].flatMap(({ process }) => process ?? []);
  }

  async #changed(path: string): Promise<void> {
    const match = LOOKED_AT.exec(path.slice(this.#root.length));
    if (match !== null) return this.#look(match[1]);
    if (path !== this.#root) return;
    const names = await namesIn(this.#xenstore, this.#root);
    const known = [...this.#guests.keys()].map(String);
    await Promise.all([...names, ...known].map((it) => this.#look(it)));
  }

  async #look(name: string): Promise<void> {
    const frontend = guestNamed(name);
    if (frontend === undefined || this.#stopped || this.#handed.has(frontend)) return;
    let guest = this.#guests.get(frontend);
    if (guest === undefined) {
      guest = this.#guest(frontend);
      this.#guests.set(frontend, guest);
    }
    await guest.look();
  }

  #guest(frontend: Domid): SupervisedGuest {
    const onEvent = (devid: number, event: Parameters<NonNullable<WatchOptions["onEvent"]>>[1]): void =>
      this.#options.onEvent?.({ backend: this.#backend, kind: this.#options.kind, frontend, devid }, event);
    const ground = {
      frontend,
      hasDisks: () => this.#hasDisks(frontend),
      start: (onChange: () => void) => {
        logger.info(`domain ${frontend}: a process for its disks`);
        const { statsDir } = this.#settings;
        // Before the process enters its jail: what is not there then, it never reaches.
        const held = holdGuestDir(statsDir, frontend);
        const user = this.#userOf?.(frontend);
        const settings = { ...this.#settings, frontend, user, statsDir: guestDir(statsDir, frontend) };
        return this.#process(settings, { onEvent, onChange }, held);
      },
      onForgotten: () => void this.#guests.delete(frontend),
    };
    return new SupervisedGuest(ground, this.#isSuccessor && !this.#taken.has(frontend));
  }

  /** It has the directory of its files, which is `held`, until it is gone. */
  #process(settings: GuestSettings, listener: GuestListener, held: HeldDir): GuestProcess {
    const { frontend } = settings;
    try {
      return new GuestProcess(settings, this.#groundOf(frontend, held), this.#spawn.guest, listener);
    } catch (error) {
      held.release();
      removeGuestDir(this.#settings.statsDir, frontend);
      throw error;
    }
  }

  #groundOf(frontend: Domid, held: HeldDir): ProcessGround {
    const scope = { backend: this.#backend, kind: this.#options.kind, frontend };
    return {
      tidyUp: () => {
        held.release();
        return tidyAfterProcess(this.#settings.statsDir, this.#xenstore, scope);
      },
      openImage: (devid, stop) => this.#openImage(frontend, devid, stop),
      lock: async (devid) =>
        lockForGuest(this.#settings.statsDir, await this.#ours(frontend, devid), this.#userOf?.(frontend)),
      openChannels: () => {
        const channels = this.#platform.openEventChannels();
        channels.restrict(frontend);
        return channels;
      },
      connectStore: async (socket) =>
        this.#settings.isRelayed
          ? StoreRelay.open(socket, this.#endpoint, (packet) => mayAskStore(scope, packet))
          : { close: () => closeSync(socket) },
    };
  }

  /** Which image that is, the keys of the toolstack say, and nobody else. */
  async #openImage(frontend: Domid, devid: number, stop: AbortSignal): Promise<OpenedImage> {
    const address = await this.#ours(frontend, devid);
    return openWatchedImage(this.#xenstore, this.#options, this.#spawn.worker, address, stop, this.#storage);
  }

  /** Throws when there is no such device for us. */
  async #ours(frontend: Domid, devid: number): Promise<DeviceAddress> {
    const address = { backend: this.#backend, kind: this.#options.kind, frontend, devid };
    if (await isOurDevice(this.#xenstore, backendDir(address), this.#options.anyScript)) return address;
    throw new XentoolError("environment", `there is no ${describeDevice(address)} to be served`);
  }

  async #hasDisks(frontend: Domid): Promise<boolean> {
    const dir = `${this.#root}/${frontend}`;
    const { anyScript } = this.#options;
    const areOurs = (await namesIn(this.#xenstore, dir)).map((devid) =>
      isOurDevice(this.#xenstore, `${dir}/${devid}`, anyScript),
    );
    return (await Promise.all(areOurs)).includes(true);
  }
}
