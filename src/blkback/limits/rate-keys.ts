// A disk's limits in xenstore: a toolstack writes them into the device's keys, at any time, and the server that
// watches the device writes there which ones are in force.
import { describeError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import type { WaitOptions, Xenstore } from "../../xenstore/client.ts";
import { backendDir, describeDevice, type DeviceAddress } from "../address.ts";
import { isDevice, type Keys } from "../device/backend-directory.ts";
import { createSharedDisk, type SharedDiskHandle } from "../data-plane/shared-disk.ts";
import { parseRate, rateText, UNLIMITED_DISK, type DiskRates, type Quantity, type Rate } from "./rates.ts";
import { askServer, noDevice } from "../toolstack.ts";

const logger = moduleLogger("blkback");

const KEYS: Readonly<Record<Quantity, string>> = { iops: "xentool-iops", bandwidth: "xentool-bandwidth" };
const QUANTITIES = Object.keys(KEYS) as Quantity[];
/** Written by the server: both limits in force, in that order. */
const ANSWER_KEY = "xentool-limits";

/** The limits to change. */
export type AskedRates = Partial<DiskRates>;

function answerOf({ iops, bandwidth }: DiskRates): string {
  return `${rateText("iops", iops)} ${rateText("bandwidth", bandwidth)}`;
}

function parseAnswer(text: string | null): DiskRates | undefined {
  const [iops = "", bandwidth = ""] = (text ?? "").split(" ");
  try {
    return {
      iops: parseRate("iops", ANSWER_KEY, iops),
      bandwidth: parseRate("bandwidth", ANSWER_KEY, bandwidth),
    };
  } catch {
    return undefined;
  }
}

/** The keys that ask for `rates`. */
export function keysOfRates(rates: AskedRates): Keys {
  return Object.fromEntries(
    QUANTITIES.flatMap((quantity) => {
      const rate = rates[quantity];
      return rate === undefined ? [] : [[KEYS[quantity], rateText(quantity, rate)]];
    }),
  );
}

/** The limits in force. Throws `environment` if there is no such device. */
export async function readRates(xenstore: Xenstore, address: DeviceAddress): Promise<DiskRates> {
  if (!(await isDevice(xenstore, address))) throw await noDevice(xenstore, address);
  return parseAnswer(await xenstore.tryRead(`${backendDir(address)}/${ANSWER_KEY}`)) ?? UNLIMITED_DISK;
}

/** Asks for other limits, and waits until they are in force. Returns all that are. */
export async function limitDevice(
  xenstore: Xenstore,
  address: DeviceAddress,
  asked: AskedRates,
  wait: WaitOptions = {},
): Promise<DiskRates> {
  const inForce = (text: string | null): DiskRates | undefined => {
    const rates = parseAnswer(text);
    const isAsked = (quantity: Quantity): boolean => {
      const rate = asked[quantity];
      return rate === undefined || rateText(quantity, rate) === rateText(quantity, rates?.[quantity] ?? rate);
    };
    return rates !== undefined && QUANTITIES.every(isAsked) ? rates : undefined;
  };
  const outlook = "; its next server will obey";
  return askServer(xenstore, address, keysOfRates(asked), ANSWER_KEY, inForce, wait, outlook);
}

/** What a device's keys say about its limits, as its server follows them. */
export class RateKeys {
  /** In force, or about to be. */
  rates: DiskRates;
  readonly #xenstore: Xenstore;
  readonly #address: DeviceAddress;
  readonly #defaults: DiskRates;
  /** The keys' values when they were last read. */
  readonly #seen: Record<Quantity, string | null> = { iops: null, bandwidth: null };
  /** Of the last connection. */
  #shared: SharedDiskHandle | undefined;

  /** `defaults` hold for what the keys leave open. */
  constructor(xenstore: Xenstore, address: DeviceAddress, defaults: DiskRates = UNLIMITED_DISK) {
    this.#xenstore = xenstore;
    this.#address = address;
    this.#defaults = defaults;
    this.rates = defaults;
  }

  /** Reads the keys. Returns true if `rates` are to be put in force and `answer` is to be written. */
  async look(): Promise<boolean> {
    const dir = backendDir(this.#address);
    const keys = [KEYS.iops, KEYS.bandwidth, ANSWER_KEY];
    const [iops, bandwidth, answer] = await Promise.all(
      keys.map((key) => this.#xenstore.tryRead(`${dir}/${key}`)),
    );
    this.rates = { iops: this.#parse("iops", iops), bandwidth: this.#parse("bandwidth", bandwidth) };
    return (answer ?? answerOf(UNLIMITED_DISK)) !== answerOf(this.rates);
  }

  /**
   * Makes what the planes of a connection share. What `rates` have let pass before is still to be paid for: a guest
   * that connects again and again would get a request each time.
   */
  share(planes: number): SharedDiskHandle {
    return (this.#shared = createSharedDisk(planes, this.#shared));
  }

  /** Other `rates` are in force than during the last connection. */
  beginAnew(): void {
    this.#shared = undefined;
  }

  get answer(): Keys {
    return { [ANSWER_KEY]: answerOf(this.rates) };
  }

  /** A value that means nothing leaves the limit as it is. */
  #parse(quantity: Quantity, text: string | null = null): Rate {
    if (text === this.#seen[quantity]) return this.rates[quantity];
    this.#seen[quantity] = text;
    if (text === null || text === "") return this.#defaults[quantity];
    try {
      return parseRate(quantity, KEYS[quantity], text);
    } catch (error) {
      const kept = rateText(quantity, this.rates[quantity]);
      logger.warn(`${describeDevice(this.#address)}: ${describeError(error)}; the limit stays ${kept}`);
      return this.rates[quantity];
    }
  }
}
