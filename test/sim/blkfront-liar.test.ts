// The frontend against a backend that breaks the protocol: in xenstore, on the ring, or by not answering.
// Expected: one clear error in good time, and nothing left behind.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { BlockFrontend } from "./block-frontend.ts";
import type { XentoolError } from "../../src/core/errors.ts";
import { RunningNbd } from "./blkfront-harness.ts";
import { LyingBackend } from "./blkfront-liar.ts";
import { RawClient } from "./nbd-raw-client.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const GOOD = { sectors: "2048", info: "0", "sector-size": "512" };
const FLUSH = 3;
const READ = 0;
let backend: LyingBackend;
let frontend: BlockFrontend | undefined;

beforeEach(async () => {
  backend = await LyingBackend.start();
});

afterEach(async () => {
  await frontend?.close();
  frontend = undefined;
  await backend.close();
});

function connect(timeoutMs = 10_000): Promise<BlockFrontend> {
  return BlockFrontend.connect(backend.guest, "xvdb", { wait: { timeoutMs } });
}

/** The error that `work` ends with. */
async function errorOf(work: Promise<unknown>): Promise<XentoolError> {
  try {
    await work;
  } catch (error) {
    return error as XentoolError;
  }
  throw new Error("it did not fail");
}

async function connected(): Promise<BlockFrontend> {
  const connecting = connect();
  await backend.serve();
  frontend = await connecting;
  return frontend;
}

describe("in xenstore", () => {
  test.each([
    ["no size", { info: "0", "sector-size": "512" }, "sectors"],
    ["a size that is none", { ...GOOD, sectors: "-1" }, "sectors"],
    ["a size beyond all disks", { ...GOOD, sectors: "9007199254740993" }, "sectors"],
    ["no info", { sectors: "8", "sector-size": "512" }, "info"],
    ["sectors of 0 bytes", { ...GOOD, "sector-size": "0" }, "sector size"],
    ["sectors of 513 bytes", { ...GOOD, "sector-size": "513" }, "sector size"],
    ["sectors of 1 GiB", { ...GOOD, "sector-size": "1073741824" }, "sector-size"],
    ["garbage", { ...GOOD, "sector-size": "\u0001".repeat(100) }, "sector-size"],
  ])("%s", async (_name, keys, words) => {
    const failing = errorOf(connect());
    await backend.serve(keys);
    await backend.letGo();
    const error = await failing;
    expect(error.kind).toBe("protocol");
    expect(error.message).toContain(words);
  });

  test("a backend that closes instead of connecting says why", async () => {
    const failing = errorOf(connect());
    await backend.say(2);
    await backend.untilFrontend(3);
    await backend.xenstore.write("/local/domain/0/error/backend/qdisk/1/51728/error", "no\u001b[31m disk");
    await backend.xenstore.setPerms("/local/domain/0/error/backend/qdisk/1/51728/error", [
      { domid: 0, access: "read" },
    ]);
    await backend.say(5);
    await backend.letGo();
    const error = await failing;
    expect(error).toMatchObject({ kind: "protocol" });
    expect(error.message).toContain("refused to connect: no\\x1b[31m disk");
  });

  test("one that never offers anything", async () => {
    const error = await errorOf(connect(100));
    expect(error.kind).toBe("timeout");
    expect(error.message).toContain("did not offer the device in time; its state is Initialising");
  });

  test("limits out of all bounds are cut to the protocol's", async () => {
    const connecting = connect();
    await backend.say(2, {
      "max-ring-page-order": "4000000000",
      "feature-max-indirect-segments": "4000000000",
    });
    await backend.untilFrontend(3);
    expect(await backend.frontendKey("ring-page-order")).toBe("4");
    expect(await backend.frontendKey("ring-ref")).toBeNull();
    expect(await backend.frontendKey("ring-ref15")).toMatch(/^[0-9]+$/);
    await backend.say(4, GOOD);
    frontend = await connecting;
    await Promise.all([backend.letGo(), frontend.close()]);
  });

  test("a backend of the old kind counts pages", async () => {
    const connecting = connect();
    await backend.say(2, { "max-ring-pages": "5" });
    await backend.untilFrontend(3);
    expect(await backend.frontendKey("num-ring-pages")).toBe("4");
    expect(await backend.frontendKey("ring-page-order")).toBeNull();
    await backend.say(4, GOOD);
    frontend = await connecting;
    await Promise.all([backend.letGo(), frontend.close()]);
  });
});

describe("on the ring", () => {
  /** What is under way fails, what comes later fails, and closing works. */
  async function expectStopped(disk: BlockFrontend, underWay: Promise<unknown>): Promise<void> {
    const error = await errorOf(underWay);
    expect(error).toMatchObject({ kind: "protocol" });
    expect(error.message).toStartWith("the backend broke the ring");
    expect((await errorOf(disk.read(0, 512))).kind).toBe("protocol");
    await Promise.all([backend.letGo(), disk.close()]);
  }

  test("an honest answer", async () => {
    const disk = await connected();
    const flushing = disk.flush();
    await backend.untilRequests(1);
    backend.answer(backend.idOf(0), FLUSH);
    await flushing;
    await Promise.all([backend.letGo(), disk.close()]);
  });

  test("an id that was never used", async () => {
    const disk = await connected();
    const flushing = disk.flush();
    await backend.untilRequests(1);
    backend.answer(backend.idOf(0) + 1n, FLUSH);
    await expectStopped(disk, flushing);
  });

  test("another operation", async () => {
    const disk = await connected();
    const reading = disk.read(0, 4096);
    await backend.untilRequests(1);
    backend.answer(backend.idOf(0), FLUSH);
    await expectStopped(disk, reading);
  });

  test("an answer more than there were questions", async () => {
    const disk = await connected();
    const reading = disk.read(0, 4096);
    await backend.untilRequests(1);
    backend.publish(2);
    await expectStopped(disk, reading);
  });

  test("one question answered twice", async () => {
    const disk = await connected();
    const both = Promise.all([disk.read(0, 4096), disk.read(4096, 4096)]);
    await backend.untilRequests(2);
    backend.answer(backend.idOf(0), READ);
    backend.answer(backend.idOf(0), READ);
    await expectStopped(disk, both);
  });

  test("the NBD server ends with the reason, and its clients with it", async () => {
    const dir = temporaryDirectory();
    const starting = RunningNbd.start({ guest: backend.guest, dir });
    await backend.serve();
    const server = await starting;
    const client = await RawClient.open(server.path, true);
    client.request(0, 1n, 0, 4096);
    await backend.untilRequests(1);
    backend.answer(99n, READ);
    const [error] = await Promise.all([errorOf(server.ended), backend.letGo(), client.untilEnded()]);
    expect(error.kind).toBe("protocol");
    expect(error.message).toContain("request 99, which is not in flight");
    expect(readdirSync(dir)).toEqual([]);
    removeDirectory(dir);
  });
});
