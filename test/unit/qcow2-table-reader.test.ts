// What a reader of a qcow2's tables leaves under way when it is closed.
import { expect, test } from "bun:test";
import { closeSync, openSync } from "node:fs";
import { join } from "node:path";
import { TableReader } from "../../src/block/targets/qcow2/table-reader.ts";
import { Reactor } from "../../src/native/reactor.ts";
import { shim } from "../../src/native/shim.ts";
import { Random } from "../support/random.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { ModelDaemon } from "./qcow2-model-daemon.ts";

test("what is being read when it is closed still has its memory, until the reactor has waited for it", () => {
  const dir = temporaryDirectory();
  const fd = openSync(join(dir, "disk.qcow2"), "w+");
  ModelDaemon.format(fd, [], new Random(1));
  const reactor = Reactor.open(4, "sync");
  const file = { file: reactor.addFile(fd, false), sizeBytes: () => shim.xt_file_size(fd) };
  const reader = new TableReader(file, { flushed: 0, forgetUnstable: () => {} }, reactor);
  reader.restart();
  reader.close();
  reactor.wait(1, -1);
  reactor.dispatch();
  expect(reader.map).toBeDefined();
  reactor.close();
  closeSync(fd);
  removeDirectory(dir);
});
