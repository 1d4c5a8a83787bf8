// Sizes as people write them, in powers of 1024: 512, 64k, 10M, 1G, 2T, or as they are printed: 64KiB, 10MiB.
import { XentoolError } from "./errors.ts";
import { escapeText } from "./log.ts";

const UNITS = ["", "k", "m", "g", "t"];

/** The number of bytes, or undefined if `text` is not a size. */
export function parseSize(text: string): number | undefined {
  const [, digits, unit = ""] = /^([0-9]{1,15})(?:([kmgt])(?:iB)?)?$/i.exec(text) ?? [];
  return digits === undefined ? undefined : Number(digits) * 1024 ** UNITS.indexOf(unit.toLowerCase());
}

/** The number of bytes, from `least` to `most`. Otherwise fails with `usage`, naming `label`. */
export function requireSize(label: string, text: string, least: number, most: number): number {
  const bytes = parseSize(text);
  if (bytes !== undefined && bytes >= least && bytes <= most) return bytes;
  const said = escapeText(text, 60);
  const range = `${sizeText(least)} to ${sizeText(most)}`;
  throw new XentoolError("usage", `${label}: "${said}" is not a size from ${range}, such as 64k or 1M`);
}

/** `bytes` as `parseSize` reads it, in the largest unit that leaves a whole number. */
export function sizeText(bytes: number): string {
  let unit = 0;
  let rest = bytes;
  while (rest !== 0 && rest % 1024 === 0 && unit < UNITS.length - 1) {
    rest /= 1024;
    unit++;
  }
  return `${rest}${unit < 2 ? UNITS[unit] : UNITS[unit].toUpperCase()}`;
}
