// `xentool selftest block`: this domain serves itself a disk, fills it, flushes it and reads it back, through grants
// and event channels. Once the disk is a store that keeps only what was flushed, and then a file, with each way
// for data to cross.
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DEFAULT_OFFER } from "../blkback/device/features.ts";
import { serveImage, type ServeOptions } from "../blkback/serve.ts";
import { runSession } from "../blkfront/session.ts";
import { fillBlock } from "../blkfront/verify.ts";
import { XentoolError } from "../core/errors.ts";
import type { Xenstore } from "../xenstore/client.ts";
import { expect, type Ground, type OnPassed } from "./check.ts";
import { ForgetfulStore } from "./forgetful-store.ts";

const BLOCK_BYTES = 16 << 10;
const BLOCKS = 1024;
const DISK_BYTES = BLOCK_BYTES * BLOCKS;
const QUEUES = 2;
/** Not vbd: a kernel would take the disk as its own. */
const FRONTEND_CLASS = "xentool-selftest";
const DEVID = 51712;

export async function checkBlock(ground: Ground, passed: OnPassed): Promise<void> {
  const { platform, xenstore } = ground;
  const devices = `/local/domain/${platform.domid}/device`;
  const hadDevices = await xenstore.exists(devices);
  try {
    await checkDisks(ground, passed);
  } finally {
    await removeParents(xenstore, devices, hadDevices);
  }
}

/** Removes the directories above our frontend's, unless somebody else has put something there meanwhile. */
async function removeParents(xenstore: Xenstore, devices: string, hadDevices: boolean): Promise<void> {
  if (xenstore.failure !== undefined || !(await xenstore.exists(devices))) return;
  const ours = `${devices}/${FRONTEND_CLASS}`;
  if ((await xenstore.exists(ours)) && (await xenstore.directory(ours)).length === 0) await xenstore.rm(ours);
  if (!hadDevices && (await xenstore.directory(devices)).length === 0) await xenstore.rm(devices);
}

async function checkDisks(ground: Ground, passed: OnPassed): Promise<void> {
  const socket = join(ground.directory, "store");
  using store = new ForgetfulStore(socket, DISK_BYTES, BLOCK_BYTES);
  await useDisk(ground, `nbd+unix:///?socket=${encodeURIComponent(socket)}`, "copy");
  const { safeAtMark } = store;
  expect(safeAtMark !== undefined, "what was written never reached the disk");
  const lost = firstWrongBlock(safeAtMark, BLOCKS - 1);
  expect(lost === undefined, `a flush was answered, but block ${lost}, written before it, was not safe`);
  passed("a flush is answered once everything written before it is safe");
  const path = join(ground.directory, "disk.img");
  for (const grantMode of ["copy", "map", "persistent"] as const) {
    writeFileSync(path, "");
    truncateSync(path, DISK_BYTES);
    await useDisk(ground, path, grantMode);
    const wrong = firstWrongBlock(readFileSync(path), BLOCKS);
    expect(
      wrong === undefined,
      `block ${wrong} of the image is not what was written (--grants ${grantMode})`,
    );
    passed(
      `a file, --grants ${grantMode}: ${DISK_BYTES >> 20} MiB written, flushed, read back and found there`,
    );
  }
}

/** Serves `path` to ourselves and has the frontend verify it. */
async function useDisk(ground: Ground, path: string, grantMode: ServeOptions["grantMode"]): Promise<void> {
  const { platform, xenstore, spawnWorker, stop } = ground;
  const { domid } = platform;
  const address = {
    backend: domid,
    frontend: domid,
    frontendClass: FRONTEND_CLASS,
    kind: "qdisk",
    devid: DEVID,
  };
  const finished = new AbortController();
  const offered = Promise.withResolvers<void>();
  const served = serveImage(
    platform,
    xenstore,
    {
      path,
      address,
      readOnly: false,
      shared: false,
      direct: false,
      offer: { ...DEFAULT_OFFER, maxQueues: QUEUES },
      grantMode,
      engine: "uring",
      filters: [],
      statsDir: join(ground.directory, "stats"),
      verbosity: 0,
      detachTimeoutMs: 2000,
    },
    spawnWorker,
    AbortSignal.any([finished.signal, stop]),
    stop,
    offered.resolve,
  );
  try {
    await Promise.race([offered.promise, served]);
    const job = { type: "verify", options: { blockBytes: BLOCK_BYTES, depth: 32 } } as const;
    const options = { devid: address.devid, verbosity: 0, frontendClass: FRONTEND_CLASS, queues: QUEUES };
    const { reason } = await runSession(platform, xenstore, options, job, spawnWorker, stop, () => {});
    if (reason !== "finished") throw new XentoolError("timeout", "the disk did not answer in time");
  } finally {
    finished.abort();
    await served.catch(() => {});
  }
  await served;
}

/** The first of `blocks` blocks that does not hold what the frontend writes there. */
function firstWrongBlock(bytes: Uint8Array, blocks: number): number | undefined {
  const expected = new Uint32Array(BLOCK_BYTES / 4);
  const asBytes = new Uint8Array(expected.buffer);
  for (let block = 0; block < blocks; block++) {
    fillBlock(expected, block);
    if (!asBytes.every((byte, index) => byte === bytes[block * BLOCK_BYTES + index])) return block;
  }
  return undefined;
}
