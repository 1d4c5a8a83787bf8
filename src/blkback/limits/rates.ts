// How fast a disk may be, as people write it (`--iops`, `--bandwidth`) and as toolstacks do in the device's keys:
// `500`, `10M`, `read:1000,write:200`, each perhaps with `,burst=N`, or `none`.
import { XentoolError } from "../../core/errors.ts";
import { escapeText } from "../../core/log.ts";
import { parseSize, sizeText } from "../../core/sizes.ts";

/** How much of one quantity may pass in a second: in all, or by direction. 0: as much as comes. */
export interface Rate {
  readonly total: number;
  readonly read: number;
  readonly write: number;
  /** How much may pass at once after a pause. 0: what passes in a tenth of a second. */
  readonly burst: number;
}

export interface DiskRates {
  /** Requests. */
  readonly iops: Rate;
  /** Bytes. */
  readonly bandwidth: Rate;
}

export type Quantity = keyof DiskRates;

export const UNLIMITED: Rate = { total: 0, read: 0, write: 0, burst: 0 };
export const UNLIMITED_DISK: DiskRates = { iops: UNLIMITED, bandwidth: UNLIMITED };

interface Notation {
  readonly parse: (text: string) => number | undefined;
  readonly show: (value: number) => string;
  /** Far above any disk, and small enough that sums stay exact. */
  readonly most: number;
  readonly examples: string;
}

const NOTATIONS: Readonly<Record<Quantity, Notation>> = {
  iops: {
    parse: (text) => (/^[0-9]{1,10}$/.test(text) ? Number(text) : undefined),
    show: String,
    most: 1e9,
    examples: "500, read:1000,write:200, 500,burst=2000 or none",
  },
  bandwidth: {
    parse: parseSize,
    show: sizeText,
    most: 2 ** 50,
    examples: "10M, read:100M,write:20M, 10M,burst=64M or none",
  },
};

const PART = /^(?:(?<direction>read|write):|(?<burst>burst)=)?(?<amount>.*)$/s;

/** Parses a limit. Throws `usage`, which names `label` and shows what would be right. */
export function parseRate(quantity: Quantity, label: string, text: string): Rate {
  if (text === "none") return UNLIMITED;
  const { parse, most, examples } = NOTATIONS[quantity];
  const rate = { ...UNLIMITED };
  let isRight = true;
  for (const part of text.split(",")) {
    const { direction, burst, amount = "" } = PART.exec(part)?.groups ?? {};
    const name = (direction ?? burst ?? "total") as keyof Rate;
    const value = parse(amount);
    if (value === undefined || value === 0 || value > most || rate[name] !== 0) isRight = false;
    else rate[name] = value;
  }
  const hasDirection = rate.read !== 0 || rate.write !== 0;
  if (isRight && hasDirection !== (rate.total !== 0)) return rate;
  throw new XentoolError("usage", `${label}: "${escapeText(text, 60)}" is not a limit such as ${examples}`);
}

/** A limit as `parseRate` reads it. */
export function rateText(quantity: Quantity, { total, read, write, burst }: Rate): string {
  const { show } = NOTATIONS[quantity];
  const parts = [
    total === 0 ? "" : show(total),
    read === 0 ? "" : `read:${show(read)}`,
    write === 0 ? "" : `write:${show(write)}`,
    burst === 0 ? "" : `burst=${show(burst)}`,
  ].filter((part) => part !== "");
  return parts.length === 0 ? "none" : parts.join(",");
}

/** How many numbers `ratesAsNumbers` makes. */
export const RATE_NUMBERS = 8;

/** For memory that holds only numbers. */
export function ratesAsNumbers({ iops, bandwidth }: DiskRates): number[] {
  return [iops, bandwidth].flatMap(({ total, read, write, burst }) => [total, read, write, burst]);
}

export function ratesFromNumbers(numbers: ArrayLike<number>): DiskRates {
  const rateAt = (at: number): Rate => ({
    total: numbers[at],
    read: numbers[at + 1],
    write: numbers[at + 2],
    burst: numbers[at + 3],
  });
  return { iops: rateAt(0), bandwidth: rateAt(4) };
}
