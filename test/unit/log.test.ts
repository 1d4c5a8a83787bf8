// Log messages are texts, not templates, and reach the terminal as one printable line.
import { afterEach, expect, spyOn, test } from "bun:test";
import { configureLogging, escapeControls, escapeText, moduleLogger } from "../../src/core/log.ts";

const logger = moduleLogger("test");

afterEach(() => configureLogging(0));

/** What `work` logs at this verbosity. */
function logged(work: () => void, verbosity = 2): string {
  const written: string[] = [];
  const stderr = spyOn(process.stderr, "write").mockImplementation((text) => written.push(String(text)) > 0);
  try {
    configureLogging(verbosity);
    work();
  } finally {
    stderr.mockRestore();
  }
  return written.join("");
}

test.each(["/tmp/{none}.img", "{", "}}", "{{x}}", "{*}", "{text}", escapeText("\u{2026}"), "%s", "\\x1b"])(
  "%s is logged as it is",
  (text) => expect(logged(() => logger.warn(text))).toBe(`xentool: test: warning: ${text}\n`),
);

test("of a template, only what we wrote is one", () => {
  const values = { domid: 3, error: "{domid}" };
  expect(logged(() => logger.info("domain {domid}: {error}", values))).toBe(
    "xentool: test: domain 3: {domid}\n",
  );
});

test("each level has its verbosity", () => {
  const all = (): void => {
    for (const level of ["debug", "info", "warn", "error"] as const) logger[level](level);
  };
  expect(logged(all, 0)).toBe("xentool: test: warning: warn\nxentool: test: error: error\n");
  expect(logged(all, 1)).toBe(`xentool: test: info\n${logged(all, 0)}`);
  expect(logged(all, 2)).toBe(`xentool: test: debug: debug\n${logged(all, 1)}`);
});

test("a line is a line, and holds nothing that a terminal obeys", () => {
  const line = "xentool: test: error: a\\x0ab\\x1b[2J\\x9b\\u{202e}é…\n";
  expect(logged(() => logger.error("a\nb\x1b[2J\u009b\u202eé…"))).toBe(line);
});

test("what was escaped before is not escaped again", () => {
  const once = escapeText("\x1b\\\u{2026}".repeat(100), 20);
  expect(escapeControls(once)).toBe(once);
  expect(logged(() => logger.warn(`xenstore read ${once}`))).toBe(
    `xentool: test: warning: xenstore read ${once}\n`,
  );
});

test("an escaped text has a bound", () => {
  expect(escapeControls("abc", 3)).toBe("abc");
  expect(escapeControls("abcd", 3)).toBe("abc…");
  expect(escapeControls("ab😀", 3)).toBe("ab\\u{d83d}…");
});
