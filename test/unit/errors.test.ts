// What kind anything thrown is of, and thereby the exit status of the command that it ends.
import { expect, test } from "bun:test";
import { openSync, readSync, renameSync, statSync } from "node:fs";
import { describeError, kindOf, XentoolError } from "../../src/core/errors.ts";

function thrownBy(body: () => unknown): unknown {
  try {
    return body();
  } catch (error) {
    return error;
  }
}

function withCode(code: string): Error {
  return Object.assign(new Error(`${code}: as a system call fails`), { code });
}

test.each([
  ...["EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS"].map(
    (code) => [code, "environment"] as const,
  ),
  ...["EIO", "ENOENT", "ECONNRESET"].map((code) => [code, "io"] as const),
  ...["EBADF", "EFAULT", "EINVAL", "ERR_INVALID_ARG_TYPE", ""].map((code) => [code, "bug"] as const),
])("a system call's %s is %s", (code, kind) => {
  expect(kindOf(withCode(code))).toBe(kind);
});

test("real ones, ours, and what is no error at all", () => {
  expect(kindOf(thrownBy(() => openSync("/nonexistent/file", "r")))).toBe("io");
  expect(kindOf(thrownBy(() => readSync(1 << 20, new Uint8Array(1))))).toBe("bug");
  expect(kindOf(new XentoolError("protocol", "a lie"))).toBe("protocol");
  expect(kindOf(new TypeError("undefined is not a function"))).toBe("bug");
  expect(kindOf("text")).toBe("bug");
});

test.each([
  ["cannot open /none", "/none", "cannot open /none: ENOENT: no such file or directory"],
  ["cannot make /none for us", "/none", "cannot make /none for us: ENOENT: no such file or directory"],
  ["cannot open /none/x", "/none", "cannot open /none/x: ENOENT: no such file or directory, stat '/none'"],
  ["no such disk", "/none", "no such disk: ENOENT: no such file or directory, stat '/none'"],
])("%s, because of %s: the path is named once", (message, path, text) => {
  const cause = thrownBy(() => statSync(path));
  expect(describeError(new XentoolError("io", message, {}, cause))).toBe(text);
});

test("nothing that is said only once is lost", () => {
  const stat = thrownBy(() => statSync("/none"));
  expect(describeError(stat)).toBe("ENOENT: no such file or directory, stat '/none'");
  const rename = thrownBy(() => renameSync("/none", "/other"));
  expect(describeError(new XentoolError("io", "cannot use /none", {}, rename))).toEndWith(
    "rename '/none' -> '/other'",
  );
  const twice = new XentoolError("io", "no disk", {}, new XentoolError("io", "cannot open /none", {}, stat));
  expect(describeError(twice)).toBe("no disk: cannot open /none: ENOENT: no such file or directory");
});

test("what failed first is what counts, also when closing fails after it, twice", () => {
  const failing = (text: string): Disposable => ({
    [Symbol.dispose]() {
      throw new Error(text);
    },
  });
  const fail = (): void => {
    using _outer = failing("the second to close");
    using _inner = failing("the first to close");
    throw new XentoolError("io", "cannot write /full");
  };
  let thrown: unknown;
  try {
    fail();
  } catch (error) {
    thrown = error;
  }
  expect(thrown).toBeInstanceOf(SuppressedError);
  expect(kindOf(thrown)).toBe("io");
  expect(describeError(thrown)).toBe("cannot write /full");
  expect(describeError(new XentoolError("environment", "no trace", {}, thrown))).toBe(
    "no trace: cannot write /full",
  );
});
