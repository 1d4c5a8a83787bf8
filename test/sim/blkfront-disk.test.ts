// The frontend against the real backend: every operation, both layouts, rings of every size, sizes and offsets
// at random against a copy in memory, and what happens to the disk meanwhile.
import { afterEach, describe, expect, test } from "bun:test";
import { truncateSync } from "node:fs";
import { resizeDevice } from "../../src/blkback/device/resize.ts";
import { closeDevice } from "../../src/blkback/toolstack.ts";
import { FrontHandshake } from "../../src/blkfront/handshake.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { BlockFrontend, type FrontendOptions } from "./block-frontend.ts";
import { ServedDisk, VDEV, type DiskOptions } from "./blkfront-harness.ts";
import { chosenSeed } from "../support/random.ts";

let served: ServedDisk | undefined;

async function start(options: DiskOptions = {}): Promise<ServedDisk> {
  served = await ServedDisk.start(options);
  return served;
}

afterEach(async () => {
  await served?.close();
  served = undefined;
});

const seed = chosenSeed();

describe.each([
  ["16 ring pages, 256 indirect segments", {}, {}],
  ["one ring page", { offer: { maxRingPageOrder: 0 } }, {}],
  ["x86_32, no indirect segments", { offer: { maxIndirectSegments: 0 } }, { abi: "x86_32" }],
  ["x86_32, 2 ring pages", {}, { abi: "x86_32", ringPageOrder: 1 }],
  ["8 ring pages, 20 indirect segments", {}, { ringPageOrder: 3, maxIndirectSegments: 20 }],
  ["4096 indirect segments, mapped grants", { offer: { maxIndirectSegments: 4096 }, grantMode: "map" }, {}],
  ["kept grants", { grantMode: "persistent" }, {}],
  [
    "kept grants, 4 queues, x86_32",
    { offer: { maxQueues: 4 }, grantMode: "persistent" },
    { queues: 4, abi: "x86_32" },
  ],
  ["kept grants, a pool of 15 pages", { grantMode: "persistent" }, { poolPages: 15 }],
  ["a pool of 15 pages", {}, { poolPages: 15 }],
  ["sectors of 4096 bytes", { offer: { logicalSectorBytes: 4096 } }, {}],
] as [string, DiskOptions, FrontendOptions][])("%s", (_name, diskOptions, frontendOptions) => {
  test(`random reads and writes match a copy in memory (SEED=${seed})`, async () => {
    const disk = await start({ imageBytes: 2 << 20, ...diskOptions });
    const frontend = await disk.connect(frontendOptions);
    const unit = frontend.disk.logicalSectorBytes;
    const copy = disk.image();
    expect(frontend.disk.sectors512 * 512).toBe(copy.length);
    let random = seed | 1;
    const below = (limit: number): number => {
      random ^= random << 13;
      random ^= random >>> 17;
      random ^= random << 5;
      return (random >>> 0) % limit;
    };
    for (let round = 0; round < 12; round++) {
      // Operations of one round do not overlap, so they may run in any order.
      const parts = 8;
      const part = copy.length / parts;
      await Promise.all(
        Array.from({ length: parts }, async (_, index) => {
          const offset = index * part + below(part / unit / 2) * unit;
          const length = (1 + below((index + 1) * part - offset) / unit) | 0;
          const bytes = Math.max(unit, length * unit);
          const end = Math.min(offset + bytes, (index + 1) * part);
          switch (below(4)) {
            case 0:
              expect(
                Buffer.compare(await frontend.read(offset, end - offset), copy.subarray(offset, end)),
              ).toBe(0);
              return;
            case 1:
              copy.fill(0, offset, end);
              return frontend.writeZeroes(offset, end - offset);
            default:
              copy.fill(below(256), offset, end);
              return frontend.write(offset, copy.subarray(offset, end));
          }
        }),
      );
    }
    await frontend.flush();
    expect(Buffer.compare(await frontend.read(0, copy.length), copy)).toBe(0);
    expect(Buffer.compare(disk.image(), copy)).toBe(0);
  });
});

describe("operations", () => {
  test("barrier, flush, discard", async () => {
    const disk = await start();
    const frontend = await disk.connect();
    await frontend.barrier(8192, new Uint8Array(60 * 1024).fill(7));
    await frontend.barrier();
    await frontend.flush();
    expect(
      disk
        .image()
        .subarray(8192, 8192 + 60 * 1024)
        .every((byte) => byte === 7),
    ).toBe(true);
    await frontend.discard(8192, 8192);
    expect((await frontend.read(8192, 8192)).every((byte) => byte === 0)).toBe(true);
    expect(frontend.disk).toMatchObject({ canFlush: true, canBarrier: true, canDiscard: true });
    expect(frontend.discard(8192, 4096, true)).rejects.toMatchObject({
      context: { errno: "EOPNOTSUPP" },
    });
    expect((await frontend.read(16384, 512))[0]).toBe(7);
  });

  test("what the disk refuses is an error of that request only", async () => {
    const disk = await start({ readOnly: true });
    const frontend = await disk.connect();
    expect(frontend.disk.readOnly).toBe(true);
    expect(frontend.write(0, new Uint8Array(512))).rejects.toMatchObject({ kind: "io" });
    expect(frontend.read(4 << 20, 512)).rejects.toMatchObject({ kind: "io" });
    expect(Buffer.compare(await frontend.read(0, 4096), disk.image().subarray(0, 4096))).toBe(0);
  });

  test("a disk with faults", async () => {
    const disk = await start({ filters: ["error:rate=100%,op=write"] });
    const frontend = await disk.connect();
    expect(frontend.write(0, new Uint8Array(1 << 20))).rejects.toMatchObject({
      context: { errno: "EIO" },
    });
    expect(Buffer.compare(await frontend.read(0, 1 << 20), disk.image().subarray(0, 1 << 20))).toBe(0);
  });
});

describe("the device's life", () => {
  test("closed and connected again, with another ring each time", async () => {
    const disk = await start();
    for (const ringPageOrder of [4, 0, 2]) {
      const frontend = await disk.connect({ ringPageOrder });
      expect(Buffer.compare(await frontend.read(4096, 4096), disk.image().subarray(4096, 8192))).toBe(0);
      await frontend.close();
    }
  });

  test("what a killed frontend left is taken over", async () => {
    const disk = await start();
    const victim = Bun.spawn(
      [process.execPath, new URL("blkfront-victim.ts", import.meta.url).pathname, disk.host.dir, VDEV],
      { stdout: "pipe" },
    );
    for await (const chunk of victim.stdout) if (Buffer.from(chunk).includes("connected")) break;
    victim.kill("SIGKILL");
    await victim.exited;
    const frontend = await disk.connect();
    expect(Buffer.compare(await frontend.read(0, 4096), disk.image().subarray(0, 4096))).toBe(0);
  });

  test("another backend takes over while it is in use", async () => {
    const disk = await start();
    const frontend = await disk.connect();
    await frontend.write(0, new Uint8Array(4096).fill(1));
    await disk.replaceBackend();
    await frontend.write(4096, new Uint8Array(4096).fill(2));
    expect(disk.image()[4096]).toBe(2);
  });

  test("its pages are kept by a backend that offers it, also by the next one, until it lets go", async () => {
    const disk = await start({ grantMode: "persistent" });
    const pagesMapped = (): number =>
      disk.host.usage().filter(({ kind, domid }) => kind === "map" && domid === disk.address.frontend).length;
    const before = pagesMapped();
    const frontend = await disk.connect({ ringPageOrder: 0 });
    const connected = pagesMapped();
    await frontend.write(0, new Uint8Array(64 << 10).fill(1));
    // Zeroes are one page, however many segments name it. More than 11 segments take an indirect page.
    await frontend.writeZeroes(0, 64 << 10);
    expect(pagesMapped() - connected).toBe(16 + 1 + 1);
    expect(disk.image().subarray(0, 64 << 10)).toEqual(Buffer.alloc(64 << 10));
    await disk.replaceBackend();
    await frontend.write(4096, new Uint8Array(4096).fill(2));
    expect(pagesMapped() - connected).toBe(1);
    await frontend.close();
    expect(pagesMapped()).toBe(before);
  });

  test("growth is seen and usable", async () => {
    const disk = await start();
    const frontend = await disk.connect();
    truncateSync(disk.imagePath, 6 << 20);
    await resizeDevice(disk.xenstore, disk.address);
    while (frontend.disk.sectors512 !== (6 << 20) / 512) await Bun.sleep(1);
    expect((await frontend.read((6 << 20) - 4096, 4096)).every((byte) => byte === 0)).toBe(true);
  });

  test("hot-unplug asks, and the frontend lets go", async () => {
    const disk = await start();
    const frontend = await disk.connect();
    await closeDevice(disk.xenstore, disk.address);
    await frontend.backendClosing;
    await frontend.close();
    expect(await disk.device.ended).toBe("closed");
  });

  test("a disk whose directory fills key by key, as QEMU writes it, is waited for until its state is there", async () => {
    const { guest, xenstore } = await start();
    const seen = await Xenstore.connect(guest);
    const front = "/local/domain/1/device/vbd/51744";
    const back = "/local/domain/0/backend/qdisk/1/51744";
    const finding = FrontHandshake.find(seen, guest, { devid: 51744 });
    let found = false;
    const done = finding.then(() => (found = true));
    for (const [key, value] of Object.entries({ backend: back, "backend-id": "0", state: "1" })) {
      expect(found).toBe(false);
      await xenstore.write(`${front}/${key}`, value);
      // The frontend has seen the key, and has asked for others, before these answers come.
      for (let i = 0; i < 10; i++) await seen.tryRead(`${front}/${key}`);
    }
    await done;
    using handshake = await finding;
    expect(handshake.name).toBe("xvdc of domain 1");
    await xenstore.rm(front);
    seen.close();
  });

  test("no such disk, within the time given", async () => {
    const disk = await start();
    const connecting = BlockFrontend.connect(disk.guest, "xvdq", { wait: { timeoutMs: 50 } });
    const error: unknown = await connecting.catch((it: unknown) => it);
    expect(error).toMatchObject({ kind: "timeout" });
    expect(String(error)).toContain("is a backend offering it?");
  });
});
