// The frontend's side of the XenbusState handshake (public/io/blkif.h and xenbus.h): finds the backend, cleans up
// after an earlier frontend, offers rings, and learns what the disk is. The backend's keys are believed within
// bounds. Once a ring is offered, a backend that closes or vanishes ends each wait at once.
import { XentoolError } from "../core/errors.ts";
import { escapeText, moduleLogger } from "../core/log.ts";
import { parseDecimal, toDomid, type Domid } from "../core/types.ts";
import type { Platform } from "../platform/platform.ts";
import {
  MAX_INDIRECT_SEGMENTS,
  SECTOR_SIZE,
  VDISK_CDROM,
  VDISK_READONLY,
  vdevName,
  type BlkifAbi,
} from "../protocol/blkif.ts";
import { RING_MAX_PAGE_ORDER } from "../protocol/ring.ts";
import { frontendPath, parseXenbusState, XenbusState, xenbusStateName } from "../protocol/xenbus.ts";
import type { Unwatch, WaitOptions, Xenstore } from "../xenstore/client.ts";
import type { XenstoreOperations } from "../xenstore/operations.ts";
import { BACKEND_TIMEOUT_MS, MAX_SECTOR_BYTES } from "./bounds.ts";
import { FrontClaim } from "./claim.ts";
import type { RingAddress } from "./device.ts";
import { isRingKey, readPorts, ringKeys, samePorts, type Ports } from "./ring-keys.ts";
import { counted } from "../core/counted.ts";

const logger = moduleLogger("blkfront");

/** What the backend can do, known before the ring is created. */
export interface BackendOffer {
  readonly backend: Domid;
  readonly maxQueues: number;
  readonly maxRingPageOrder: number;
  /** The deprecated keys hold a page count instead of an order. */
  readonly countsPages: boolean;
  /** 0: no indirect requests. */
  readonly maxIndirectSegments: number;
}

/** The disk, known once the backend serves the ring. Structured-cloneable. */
export interface Disk {
  readonly sectors512: number;
  readonly logicalSectorBytes: number;
  readonly physicalSectorBytes: number;
  readonly readOnly: boolean;
  readonly cdrom: boolean;
  readonly canFlush: boolean;
  readonly canBarrier: boolean;
  readonly canDiscard: boolean;
  readonly canSecureDiscard: boolean;
  readonly discardGranularityBytes: number;
}

/** Events of a connected frontend. `closing`: we are asked to give the disk back; `lost`: it was taken away. */
export type BackendEvent =
  | { readonly kind: "resized"; readonly disk: Disk }
  | { readonly kind: "closing" }
  | { readonly kind: "lost"; readonly error: XentoolError };

type BoundedWait = WaitOptions & { readonly timeoutMs: number };

export class FrontHandshake {
  readonly #xenstore: Xenstore;
  readonly #front: string;
  readonly #back: string;
  readonly #backend: Domid;
  readonly #name: string;
  readonly #claim: FrontClaim;
  readonly #wait: BoundedWait;
  /** What we wrote last, and where its ports are: a frontend with another state or other ports is not ours. */
  #state: XenbusState | undefined;
  #ports: Ports | undefined;

  private constructor(
    xenstore: Xenstore,
    front: string,
    back: string,
    backend: Domid,
    name: string,
    claim: FrontClaim,
    wait: BoundedWait,
  ) {
    this.#xenstore = xenstore;
    this.#front = front;
    this.#back = back;
    this.#backend = backend;
    this.#name = name;
    this.#claim = claim;
    this.#wait = wait;
  }

  /**
   * Finds a device of the platform's own domain, waiting until the toolstack has created it. Each wait is
   * limited by `wait`. Dispose of the result to let others have the disk.
   */
  static async find(
    xenstore: Xenstore,
    { domid, descriptor }: Pick<Platform, "domid" | "descriptor">,
    { devid, frontendClass = "vbd" }: { readonly devid: number; readonly frontendClass?: string },
    wait: WaitOptions = {},
  ): Promise<FrontHandshake> {
    const front = frontendPath(domid, frontendClass, devid);
    const name = `${vdevName(devid)} of domain ${domid}`;
    const bounded = { timeoutMs: BACKEND_TIMEOUT_MS, ...wait };
    // The last key that a toolstack writes if it does not write all at once: QEMU does not.
    await xenstore
      .waitFor(`${front}/state`, (value) => value !== null, bounded)
      .catch((error: unknown) => {
        if (!(error instanceof XentoolError) || error.kind !== "timeout") throw error;
        // Disks of domain 0 are rare, and we are domain 0 where nobody says who we are.
        const who = domid === 0 ? " We are domain 0 unless XENTOOL_DOMID says otherwise" : "";
        throw new XentoolError("timeout", `there is no ${name}; is a backend offering it?${who}`, { front });
      });
    const back = await xenstore.tryRead(`${front}/backend`);
    const backend = parseDecimal(await xenstore.tryRead(`${front}/backend-id`), 0x7fef);
    if (backend === undefined || back === null || !back.startsWith(`/local/domain/${backend}/`))
      throw new XentoolError("protocol", `${name} names no backend of domain ${backend ?? "?"}`, { front });
    const claim = new FrontClaim(descriptor, devid);
    return new FrontHandshake(xenstore, front, back, toDomid(backend), name, claim, bounded);
  }

  /** "xvdb of domain 1". */
  get name(): string {
    return this.#name;
  }

  /**
   * Brings both ends to where a ring can be offered, whatever state they are in, and reads the backend's offer.
   * Fails with `environment` when somebody in this domain uses the disk, unless we are to `take` it from them.
   */
  async prepare(take = false): Promise<BackendOffer> {
    if (take) this.#claim.takeFromKernel();
    else await this.#expectFree();
    const own = await this.#ownState();
    if (own !== XenbusState.Initialising) await this.#letGo();
    await this.#claim.hold(this.#wait.timeoutMs, this.#wait.signal);
    // Closed does not mean a refusal here: the backend may not have noticed yet that we start over.
    await this.#waitForAny([XenbusState.InitWait], "offer the device");
    const order = await this.#number("max-ring-page-order", 0xffff_ffff);
    const pages = order === undefined ? await this.#number("max-ring-pages", 0xffff_ffff) : undefined;
    const offered = order ?? (pages === undefined ? 0 : Math.floor(Math.log2(Math.max(1, pages))));
    const segments = (await this.#number("feature-max-indirect-segments", 0xffff_ffff)) ?? 0;
    return {
      backend: this.#backend,
      maxQueues: Math.max(1, (await this.#number("multi-queue-max-queues", 0xffff_ffff)) ?? 1),
      maxRingPageOrder: Math.min(offered, RING_MAX_PAGE_ORDER),
      countsPages: pages !== undefined,
      maxIndirectSegments: Math.min(segments, MAX_INDIRECT_SEGMENTS),
    };
  }

  /** Tells the backend where the rings are: state 3. */
  async offerRings(rings: readonly RingAddress[], abi: BlkifAbi, offer: BackendOffer): Promise<void> {
    const keys = { ...ringKeys(rings, abi, offer.countsPages), state: XenbusState.Initialised };
    this.#claim.record(rings[0].port);
    this.#ports = await this.#xenstore.transaction(async (tx) => {
      if (!(await tx.exists(this.#front))) throw this.#lost("it was removed");
      await this.#removeRingKeys(tx);
      for (const [key, value] of Object.entries(keys)) await tx.write(`${this.#front}/${key}`, String(value));
      return readPorts(tx, this.#front);
    });
    this.#state = XenbusState.Initialised;
    logger.info(
      `${this.#name}: Initialised, ${counted(rings.length, "queue")}, ${counted(rings[0].refs.length, "page")} each`,
    );
  }

  async #removeRingKeys(tx: XenstoreOperations): Promise<void> {
    for (const key of await tx.directory(this.#front))
      if (isRingKey(key)) await tx.rm(`${this.#front}/${key}`);
  }

  /** Waits until the backend serves the ring. Returns the disk that it serves. */
  async awaitDisk(): Promise<Disk> {
    const { Connected, Closing, Closed, Unknown } = XenbusState;
    const state = await this.#waitForAny([Connected, Closing, Closed, Unknown], "connect");
    if (state !== Connected) throw await this.#refusal();
    return this.#readDisk();
  }

  /** State 4: the disk is in use. */
  async connected(): Promise<void> {
    if (!(await this.#enter(XenbusState.Connected))) throw this.#lost("somebody else has taken it");
  }

  /** Reports what happens to a connected disk: a new size, or its end. */
  async watch(disk: Disk, onEvent: (event: BackendEvent) => void): Promise<Unwatch> {
    let sectors = disk.sectors512;
    const look = async (): Promise<void> => {
      const end = await this.#endOf();
      if (end !== undefined) return onEvent(end);
      const size = await this.#number("sectors", Number.MAX_SAFE_INTEGER);
      if (size === undefined || size === sectors) return;
      sectors = size;
      onEvent({ kind: "resized", disk: await this.#readDisk() });
    };
    const unwatch = await this.#xenstore.watch(this.#back, look);
    const unwatchOwn = await this.#xenstore.watch(this.#front, look);
    return async () => {
      await unwatch();
      await unwatchOwn();
    };
  }

  /**
   * Lets go of the device: states 5 and 6, each as soon as the backend is ready. No signal cuts that short. A device
   * that is not ours any more is left alone. Nothing that we wrote of our rings stays.
   */
  async close(): Promise<void> {
    const { Unknown, InitWait, Closing, Closed } = XenbusState;
    const patient = { timeoutMs: this.#wait.timeoutMs };
    if (!(await this.#enter(Closing))) return;
    await this.#waitForAny([Closing, Closed, Unknown], "close", patient);
    if (!(await this.#enter(Closed))) return;
    // A backend that immediately waits for the next frontend is past Closed already.
    await this.#waitForAny([Closed, InitWait, Unknown], "let go", patient);
  }

  [Symbol.dispose](): void {
    this.#claim.release();
  }

  /** Whether the disk has come to its end: we are asked to give it back, or it was taken away. */
  async #endOf(): Promise<BackendEvent | undefined> {
    const { Connected, Closing, Closed, Unknown } = XenbusState;
    const taken = "somebody else has taken it, or it was removed by force";
    if (!(await this.#isOurs(this.#xenstore))) return { kind: "lost", error: this.#lost(taken) };
    const state = await this.#backendState();
    if (state === Connected) return undefined;
    logger.info(`${this.#name}: backend ${xenbusStateName(state)}`);
    if (state === Unknown) return { kind: "lost", error: this.#lost("its backend is gone") };
    // A toolstack that unplugs a disk first takes it offline; a backend that failed closes it while still online.
    const online = await this.#xenstore.tryRead(`${this.#back}/online`);
    if (online !== "1" && (state === Closing || state === Closed)) {
      // A forced removal changes our side first, perhaps after we looked, and then the backend's side.
      if (await this.#isOurs(this.#xenstore)) return { kind: "closing" };
      return { kind: "lost", error: this.#lost(taken) };
    }
    const reason = await this.#backendError();
    return { kind: "lost", error: this.#lost(`its backend is ${xenbusStateName(state)}${reason}`) };
  }

  #lost(why: string): XentoolError {
    return new XentoolError("io", `${this.#name} was lost: ${why}`);
  }

  /** Whether xenstore still has what we last wrote for our frontend. */
  async #isOurs(store: Pick<Xenstore, "tryRead">): Promise<boolean> {
    return (
      parseXenbusState(await store.tryRead(`${this.#front}/state`)) === this.#state &&
      samePorts(await readPorts(store, this.#front), this.#ports)
    );
  }

  /** Fails when somebody else uses the disk; otherwise the claim is ours. */
  async #expectFree(): Promise<void> {
    const driver = this.#claim.kernelDriver;
    if (driver !== undefined) throw this.#inUse(`the kernel's driver ${driver} has it`);
    if (!this.#claim.tryHold()) throw this.#inUse("another xentool blkfront has it");
    const { Initialised, Connected, Closed, Unknown } = XenbusState;
    const [own, back] = [await this.#ownState(), await this.#backendState()];
    if (own !== Initialised && own !== Connected) return;
    if (back === Closed || back === Unknown) return;
    const { single, first } = await readPorts(this.#xenstore, this.#front);
    // Both: a frontend of others that passes over what another left.
    if ((single === null || first === null) && this.#claim.isAbandoned(single ?? first)) return;
    throw this.#inUse(`a frontend of it is ${xenbusStateName(own)}`);
  }

  #inUse(by: string): XentoolError {
    return new XentoolError(
      "environment",
      `${this.#name} is in use: ${by}; --take takes it anyway, and data not written yet is lost`,
    );
  }

  /** Closes what an earlier frontend left, as that frontend should have, and starts over. */
  async #letGo(): Promise<void> {
    const state = await this.#backendState();
    logger.info(`${this.#name}: an earlier frontend left it; backend ${xenbusStateName(state)}`);
    await this.#write(XenbusState.Closed);
    await this.#waitForAny([XenbusState.Closed, XenbusState.InitWait, XenbusState.Unknown], "let go");
    await this.#write(XenbusState.Initialising);
  }

  async #readDisk(): Promise<Disk> {
    const sectors512 = await this.#required("sectors", Number.MAX_SAFE_INTEGER / SECTOR_SIZE);
    const info = await this.#required("info", 0xffff_ffff);
    const logicalSectorBytes = await this.#required("sector-size", MAX_SECTOR_BYTES);
    if (logicalSectorBytes < SECTOR_SIZE || !Number.isInteger(Math.log2(logicalSectorBytes)))
      throw new XentoolError("protocol", `${this.#name}: a sector size of ${logicalSectorBytes} bytes`);
    const physical = await this.#number("physical-sector-size", MAX_SECTOR_BYTES);
    const has = async (key: string): Promise<boolean> => (await this.#number(key, 1)) === 1;
    return {
      sectors512,
      logicalSectorBytes,
      physicalSectorBytes: Math.max(logicalSectorBytes, physical ?? 0),
      readOnly: (info & VDISK_READONLY) !== 0,
      cdrom: (info & VDISK_CDROM) !== 0,
      canFlush: await has("feature-flush-cache"),
      canBarrier: await has("feature-barrier"),
      canDiscard: await has("feature-discard"),
      canSecureDiscard: await has("discard-secure"),
      discardGranularityBytes: (await this.#number("discard-granularity", 2 ** 32)) ?? logicalSectorBytes,
    };
  }

  async #refusal(): Promise<XentoolError> {
    const reason = await this.#backendError();
    return new XentoolError("protocol", `the backend of ${this.#name} refused to connect${reason}`);
  }

  /** ": REASON". Backends write it next to their directory, where we may have no access. */
  async #backendError(): Promise<string> {
    const node = this.#back.replace(/^\/local\/domain\/[0-9]+/, (own) => `${own}/error`);
    const reason = await this.#xenstore.tryRead(`${node}/error`).catch(() => null);
    return reason === null ? "" : `: ${escapeText(reason)}`;
  }

  async #waitForAny(
    states: readonly XenbusState[],
    what: string,
    wait: WaitOptions = this.#wait,
  ): Promise<XenbusState> {
    const matches = (value: string | null): boolean => states.includes(parseXenbusState(value));
    try {
      return parseXenbusState(await this.#xenstore.waitFor(`${this.#back}/state`, matches, wait));
    } catch (error) {
      if (!(error instanceof XentoolError) || error.kind !== "timeout") throw error;
      const state = xenbusStateName(await this.#backendState());
      throw new XentoolError(
        "timeout",
        `the backend of ${this.#name} did not ${what} in time; its state is ${state}`,
      );
    }
  }

  /** Enters our next state if the device is still as we left it. Returns whether it was. */
  async #enter(state: XenbusState): Promise<boolean> {
    const entered = await this.#xenstore.transaction(async (tx) => {
      if (!(await this.#isOurs(tx))) return false;
      // The next frontend may be one that only adds its own.
      if (state === XenbusState.Closed) await this.#removeRingKeys(tx);
      await tx.write(`${this.#front}/state`, String(state));
      return true;
    });
    if (!entered) return false;
    this.#state = state;
    logger.info(`${this.#name}: ${xenbusStateName(state)}`);
    return true;
  }

  /** Overwrites another frontend's state. A device that the toolstack has removed meanwhile must not come back. */
  async #write(state: XenbusState): Promise<void> {
    await this.#xenstore.transaction(async (tx) => {
      if (!(await tx.exists(this.#front))) throw this.#lost("it was removed");
      await tx.write(`${this.#front}/state`, String(state));
    });
    logger.info(`${this.#name}: ${xenbusStateName(state)}`);
  }

  async #ownState(): Promise<XenbusState> {
    return parseXenbusState(await this.#xenstore.tryRead(`${this.#front}/state`));
  }

  async #backendState(): Promise<XenbusState> {
    return parseXenbusState(await this.#xenstore.tryRead(`${this.#back}/state`));
  }

  async #number(key: string, max: number): Promise<number | undefined> {
    return parseDecimal(await this.#xenstore.tryRead(`${this.#back}/${key}`), max);
  }

  async #required(key: string, max: number): Promise<number> {
    const value = await this.#number(key, max);
    if (value === undefined)
      throw new XentoolError("protocol", `the backend of ${this.#name} wrote no sensible ${key}`, { key });
    return value;
  }
}
