// A listening unix socket and its path: what is left at the path before and after.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { isListening, listenAt } from "../../src/native/unix-listener.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

let dir = "";
let path = "";
beforeEach(() => {
  dir = temporaryDirectory();
  path = join(dir, "a.sock");
});
afterEach(() => removeDirectory(dir));

test("closing removes the path, and does not mind that somebody has", () => {
  const first = listenAt(path);
  expect(existsSync(path)).toBe(true);
  first.close();
  expect(existsSync(path)).toBe(false);
  const second = listenAt(path);
  rmSync(path);
  second.close();
});

test("closing leaves a socket alone that has come in the place of ours", () => {
  const first = listenAt(path);
  rmSync(path);
  const second = listenAt(path);
  first.close();
  expect(isListening(path)).toBe(true);
  second.close();
  expect(existsSync(path)).toBe(false);
});

test("a path in use, or that is a file, is left as it is", () => {
  const first = listenAt(path);
  expect(() => listenAt(path)).toThrow("in use");
  first.close();
  writeFileSync(path, "mine");
  expect(() => listenAt(path)).toThrow(path);
  expect(existsSync(path)).toBe(true);
});
