// What kind anything thrown is of, and thereby the exit status of the command that it ends.
import { expect, test } from "bun:test";
import { openSync, readSync } from "node:fs";
import { kindOf, XentoolError } from "../../src/core/errors.ts";

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
