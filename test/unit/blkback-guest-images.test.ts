// Images that `watch` opens for the process of a guest, both ends in this process: whatever is asked for in whatever
// order, what is handed over is open there, and nothing stays open here once it is closed or the process is gone.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { closeSync, fstatSync, openSync, readdirSync, readSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { closeImage, openImage, type NbdImage } from "../../src/block/image.ts";
import { takeLocks } from "../../src/block/image/claim.ts";
import { openedImage, type OpenedImage } from "../../src/block/image/opened.ts";
import { AskedImages } from "../../src/blkback/guests/asked-images.ts";
import { KeptImages, type Reply } from "../../src/blkback/guests/kept-images.ts";
import { lockDevice, lockForGuest, SERVED } from "../../src/blkback/device/device-lock.ts";
import type { Ask } from "../../src/blkback/guests/messages.ts";
import { holdGuestDir } from "../../src/blkback/device/state-directory.ts";
import { XentoolError } from "../../src/core/errors.ts";
import { toDomid } from "../../src/core/types.ts";
import { receiveDescriptors, sendDescriptors, socketPair } from "../../src/native/descriptors.ts";
import { openDescriptors } from "../support/descriptors.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const XVDA = { backend: toDomid(0), kind: "vbd", frontend: toDomid(1), devid: 51712 };
const { signal: never } = new AbortController();

let dir: string;
let before: number;
let pair: ReturnType<typeof socketPair>;
let kept: KeptImages;
let asked: AskedImages;
let open: (stop: AbortSignal) => Promise<OpenedImage>;
/** How many descriptors of an answer get through. */
let arriving: number;

beforeEach(() => {
  dir = temporaryDirectory();
  writeFileSync(join(dir, "a.img"), "a".repeat(4096));
  before = openDescriptors().length;
  pair = socketPair("descriptors");
  arriving = Infinity;
  open = async () => openedImage(openImage(join(dir, "a.img"), OPTIONS));
  kept = new KeptImages({
    openImage: (_devid, stop) => open(stop),
    lock: async (devid) => lockForGuest(join(dir, "state"), { ...XVDA, devid }),
    openChannels: () => {
      const fd = openSync(join(dir, "a.img"), "r");
      return { fd, close: () => closeSync(fd) };
    },
  });
  asked = new AskedImages(pair.theirs, (ask) => void carry(ask));
});

afterEach(async () => {
  await kept.close();
  closeSync(pair.ours);
  closeSync(pair.theirs);
  expect(openDescriptors().length).toBe(before);
  removeDirectory(dir);
});

const EXPORT: NbdImage = {
  kind: "nbd",
  path: "nbd+unix:///?socket=/run/nbd.sock",
  address: { address: "/run/nbd.sock", port: undefined, exportName: "" },
  seen: {
    sizeBytes: 4096,
    flags: 0,
    structured: true,
    minBlockBytes: 1,
    preferredBlockBytes: 4096,
    maxBlockBytes: 1 << 20,
  },
  connections: 1,
  isOurs: false,
  info: {
    sizeBytes: 4096,
    readOnly: false,
    canDiscard: false,
    canSecureDiscard: false,
    discardGranularityBytes: 0,
    physicalSectorBytes: 512,
  },
};
const OPTIONS = { readOnly: false, direct: false, sectorSizeBytes: 512 };

async function carry(ask: Ask): Promise<void> {
  const reply: Reply = (fds, more) => {
    if (fds.length > 0) sendDescriptors(pair.ours, ask.ask, fds.slice(0, arriving));
    asked.take(JSON.parse(JSON.stringify({ ask: ask.ask, descriptors: fds.length, ...more })));
  };
  await kept.answer(ask, reply, (trouble) => asked.trouble(trouble));
}

test("an image comes open, and can be opened again when it is closed", async () => {
  for (let round = 0; round < 2; round++) {
    await using opened = await asked.open(XVDA, never);
    const { image } = opened;
    if (image.kind !== "file") throw new Error("no file");
    const byte = Buffer.alloc(1);
    readSync(image.fd, byte, 0, 1, 4095);
    expect(byte.toString()).toBe("a");
    expect(image.info.sizeBytes).toBe(4096);
  }
});

test("what cannot be opened is said there as it was here", async () => {
  open = async () => {
    throw new XentoolError("environment", "it is in use", { reason: "held", own: true });
  };
  const error = await asked.open(XVDA, never).catch((it: unknown) => it);
  expect(error).toMatchObject({ kind: "environment", message: "it is in use", context: { reason: "held" } });
});

test("what the process keeps open is its own, also when it asks once more", async () => {
  const opened = await asked.open(XVDA, never);
  expect(asked.open(XVDA, never)).rejects.toThrow("is in use");
  await opened[Symbol.asyncDispose]();
  const again = await asked.open(XVDA, never);
  await kept.close();
  expect(asked.open(XVDA, never)).rejects.toThrow("its process is gone");
  await again[Symbol.asyncDispose]();
});

test("asked for several times at once, there is one at a time", async () => {
  let most = 0;
  let now = 0;
  open = async () => {
    most = Math.max(most, ++now);
    const image = openImage(join(dir, "a.img"), { ...OPTIONS, shared: true });
    const dispose = async (): Promise<void> => {
      now--;
      closeImage(image);
    };
    return openedImage(image, dispose);
  };
  const all = await Promise.all([asked.open(XVDA, never), asked.open(XVDA, never), asked.open(XVDA, never)]);
  expect([most, now]).toEqual([1, 1]);
  await Promise.all(all.map((it) => it[Symbol.asyncDispose]()));
  expect(now).toBe(0);
});

test("the claim to an export is held by the process, too, when `watch` is killed", async () => {
  const path = join(dir, "a.export");
  const claim = (): number => openSync(path, "w+");
  open = async () => {
    const fd = claim();
    expect(takeLocks(fd, path, "write", undefined)).toBe(true);
    return { image: EXPORT, handedOver: [fd], [Symbol.asyncDispose]: async () => closeSync(fd) };
  };
  const opened = await asked.open(XVDA, never);
  expect(opened.image).toEqual(EXPORT);
  await kept.close();
  const other = claim();
  expect(takeLocks(other, path, "write", undefined)).toBe(false);
  await opened[Symbol.asyncDispose]();
  expect(takeLocks(other, path, "write", undefined)).toBe(true);
  closeSync(other);
});

test("whoever has opened the image is told whether a connection is to be made anew", async () => {
  const told: boolean[] = [];
  open = async () => ({
    image: EXPORT,
    handedOver: [],
    dial: async (anew) => {
      told.push(anew);
      return anew ? openSync(join(dir, "a.img"), "r") : -111;
    },
    [Symbol.asyncDispose]: async () => {},
  });
  await using opened = await asked.open(XVDA, never);
  expect(await opened.dial?.(false)).toBe(-111);
  const fd = await opened.dial?.(true);
  expect(told).toEqual([false, true]);
  closeSync(fd as number);
});

test("a lock is held by the process, too, and nobody has the device before both let it go", async () => {
  const state = join(dir, "state");
  const directory = holdGuestDir(state, XVDA.frontend);
  const held = await asked.lock(XVDA);
  expect(() => lockDevice(state, XVDA)).toThrow("is served by another process");
  expect(asked.lock(XVDA)).rejects.toMatchObject({ context: { reason: SERVED } });
  await kept.close();
  await held.release();
  lockDevice(state, XVDA).release();
  directory.release();
  expect(readdirSync(state)).toEqual(["1"]);
  expect(asked.lock(XVDA)).rejects.toThrow("its process is gone");
});

test("event channels are opened for each connection, and are the process's alone", async () => {
  const others = openDescriptors().length;
  const [one, two] = [await asked.channels(XVDA.devid), await asked.channels(XVDA.devid)];
  expect(two).not.toBe(one);
  expect(openDescriptors().length).toBe(others + 2);
  for (const fd of [one, two]) closeSync(fd);
});

test("a process at its limit of descriptors gets fewer, opens nothing, and may try again", async () => {
  open = async () => {
    const image = openImage(join(dir, "a.img"), OPTIONS);
    return { ...openedImage(image), handedOver: [image.fd, image.fd] };
  };
  arriving = 1;
  const held = openDescriptors().length;
  expect(await asked.open(XVDA, never).catch((it: unknown) => it)).toMatchObject({ kind: "environment" });
  // Nor does `watch` keep it, perhaps from others: the disk may be refused and never asked for again.
  expect(openDescriptors().length).toBe(held);
  arriving = Infinity;
  await (await asked.open(XVDA, never))[Symbol.asyncDispose]();
  expect(openDescriptors().length).toBe(held);
});

test("whoever has stopped before asks for nothing", async () => {
  open = () => new Promise(() => {});
  const stopped = asked.open(XVDA, AbortSignal.abort());
  expect(stopped).rejects.toThrow("stopped before");
});

test("a wait that is stopped ends, whatever it waited for", async () => {
  open = (stop) =>
    new Promise((_, reject) => {
      stop.addEventListener("abort", () => reject(new XentoolError("cancelled", "stopped")));
    });
  const stop = new AbortController();
  const opening = asked.open(XVDA, stop.signal);
  stop.abort();
  expect(opening).rejects.toThrow("stopped");
});

test("nobody answers any more: every question fails", async () => {
  open = () => new Promise(() => {});
  asked = new AskedImages(pair.theirs, () => {});
  const opening = asked.open(XVDA, never);
  asked.end();
  expect(opening).rejects.toThrow("`watch` is gone");
  expect(asked.open(XVDA, never)).rejects.toThrow("`watch` is gone");
});

test("a connection is asked for only where there is a server", async () => {
  await using opened = await asked.open(XVDA, never);
  expect(opened.dial?.(false)).rejects.toThrow("there is no server");
});

test("descriptors have a number, and one that takes none of them holds nobody up", () => {
  const fd = openSync(join(dir, "a.img"), "r");
  sendDescriptors(pair.ours, 7, [fd, fd]);
  const [one, two, ...rest] = receiveDescriptors(pair.theirs, 7);
  expect(rest).toEqual([]);
  for (const it of [one, two]) {
    expect(fstatSync(it).ino).toBe(fstatSync(fd).ino);
    closeSync(it);
  }
  let sent = 0;
  const flood = (): void => {
    for (; sent < 100_000; sent++) sendDescriptors(pair.ours, sent, [fd]);
  };
  expect(flood).toThrow("cannot hand over what is open");
  for (let number = 0; number < sent; number++) closeSync(receiveDescriptors(pair.theirs, number)[0]);
  closeSync(fd);
  expect(() => receiveDescriptors(pair.theirs, 0)).toThrow("cannot take what is open");
});
