// Sizes as people write them: 512, 64k, 10M, 1G, 2T, in powers of 1024.

const UNITS = ["", "k", "m", "g", "t"];

/** The number of bytes, or undefined if `text` is not a size. */
export function parseSize(text: string): number | undefined {
  const [, digits, unit = ""] = /^([0-9]{1,15})([kmgt]?)$/i.exec(text) ?? [];
  return digits === undefined ? undefined : Number(digits) * 1024 ** UNITS.indexOf(unit.toLowerCase());
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
