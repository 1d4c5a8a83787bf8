// Sizes as people write them: one grammar for all options, and what is printed can be typed.
import { expect, test } from "bun:test";
import { formatBytes } from "../../cmd/lib/output.ts";
import { parseSize, requireSize, sizeText } from "../../src/core/sizes.ts";

test.each([
  ["0", 0],
  ["512", 512],
  ["64k", 65_536],
  ["64K", 65_536],
  ["64KiB", 65_536],
  ["10M", 10 * 2 ** 20],
  ["1G", 2 ** 30],
  ["2TiB", 2 ** 41],
])("%s is a size", (text, bytes) => {
  expect(parseSize(text)).toBe(bytes);
});

test.each(["", "k", "1.5M", "64kB", "10MB", "512iB", "-1", "0x10", "1e3", " 1", "1 M", "1P"])(
  "%j is none",
  (text) => {
    expect(parseSize(text)).toBeUndefined();
  },
);

test("what is printed is a size again", () => {
  for (const bytes of [0, 1, 512, 1024, 1536, 65_536, 2 ** 20, 3 * 2 ** 30, 2 ** 40])
    expect(parseSize(sizeText(bytes))).toBe(bytes);
  for (const bytes of [1024, 65_536, 2 ** 20, 3 * 2 ** 30, 2 ** 40])
    expect(parseSize(formatBytes(bytes).replace(" ", ""))).toBe(bytes);
});

test("a size out of range, or none, is a usage error that names the option", () => {
  expect(requireSize("--bs", "4k", 512, 2 ** 30)).toBe(4096);
  for (const [text, shown] of [
    ["256", "256"],
    ["2G", "2G"],
    ["\x1b[2J", "\\x1b[2J"],
  ] as const)
    expect(() => requireSize("--bs", text, 512, 2 ** 30)).toThrow(
      `--bs: "${shown}" is not a size from 512 to 1G, such as 64k or 1M`,
    );
});
