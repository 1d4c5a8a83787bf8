// A number with its noun, in words: "1 disk", "2 disks", "0 queries".

/** `shown` is the number as it is to be read, if not in plain digits; `many` the plural, if not noun and s. */
export function counted(
  count: number,
  noun: string,
  { shown = String(count), many = `${noun}s` } = {},
): string {
  return `${shown} ${count === 1 ? noun : many}`;
}
