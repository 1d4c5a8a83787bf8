// The backend's end of a ring, with a frontend of the test's: every fill at indices that wrap, every lie about
// req_prod, and when either side wants to be told.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { BackRing, RING_LIES } from "../../src/blkback/data-plane/back-ring.ts";
import { PAGE_SIZE } from "../../src/core/types.ts";
import { allocateMemory, type Mapping } from "../../src/native/memory.ts";
import { ABI_X86_32, ABI_X86_64, REQUEST, type BlkifAbi } from "../../src/protocol/blkif.ts";
import { RING_REQ_EVENT, RING_REQ_PROD, RING_RSP_EVENT, RING_RSP_PROD } from "../../src/protocol/ring.ts";

const SLOTS = 32;
const u32 = (value: number): number => value >>> 0;
/** Where a ring may stand: at its start, and just before its indices wrap, or their sign does. */
const BASES = [0, 5, u32(-1), u32(-7), u32(-SLOTS), 0x7fff_fffe];

describe.each([
  ["x86_64", ABI_X86_64],
  ["x86_32", ABI_X86_32],
] as [string, BlkifAbi][])("%s", (_name, abi) => {
  let shared: Mapping;
  let ring: BackRing | undefined;
  beforeEach(() => {
    shared = allocateMemory(PAGE_SIZE);
  });
  afterEach(() => {
    ring?.close();
    shared.close();
  });

  /** A ring on which everything up to `base` is answered. */
  function attach(base: number, unanswered?: Uint32Array): BackRing {
    ring?.close();
    shared.bytes.fill(0);
    for (const [index, word] of [base, base + 1, base, base + 1].entries()) shared.words[index] = word;
    shared.words[RING_REQ_PROD] = u32(base + (unanswered === undefined ? 0 : unanswered.length / (112 / 4)));
    ring = new BackRing(shared, abi, unanswered);
    expect(ring.slots).toBe(SLOTS);
    return ring;
  }

  const slotAt = (index: number): number => 64 + (index & (SLOTS - 1)) * abi.slotBytes;

  /** Puts requests number `from` to `to`, recognisable by their ids, and says so. */
  function produce(from: number, to: number): void {
    const view = new DataView(shared.bytes.buffer);
    for (let index = from; index !== to; index = u32(index + 1)) {
      shared.bytes.fill(0xee, slotAt(index), slotAt(index) + abi.slotBytes);
      view.setUint32(slotAt(index), index & 0xff, true);
      view.setBigUint64(slotAt(index) + 8 - abi.gapBytes, BigInt(index) << 20n, true);
    }
    Atomics.store(shared.words, RING_REQ_PROD, to);
  }

  function expectFetched(count: number, from: number): void {
    const view = new DataView((ring as BackRing).requests.bytes.buffer);
    for (let slot = 0; slot < count; slot++) {
      const index = u32(from + slot);
      expect(view.getUint32(slot * REQUEST.bytes, true)).toBe(index & 0xff);
      expect(view.getBigUint64(slot * REQUEST.bytes + REQUEST.id, true)).toBe(BigInt(index) << 20n);
    }
  }

  test("every fill, answered in every portion, wherever the indices stand", () => {
    for (const base of BASES)
      for (let fill = 0; fill <= SLOTS; fill++)
        for (const answered of new Set([0, 1, fill >> 1, fill - 1, fill])) {
          if (answered < 0 || answered > fill) continue;
          const back = attach(base);
          produce(base, u32(base + fill));
          expect(back.hasNews(0)).toBe(fill > 0);
          expect([back.fetch(), back.unanswered]).toEqual([fill, fill]);
          expectFetched(fill, base);
          expect([back.fetch(), back.hasNews(0)]).toEqual([0, false]);
          back.push(answered);
          expect([back.unanswered, shared.words[RING_RSP_PROD]]).toEqual([
            fill - answered,
            u32(base + answered),
          ]);
          // As many as there is room for, and not one more.
          const room = SLOTS - (fill - answered);
          produce(u32(base + fill), u32(base + fill + room));
          expect([back.fetch(), back.unanswered]).toEqual([room, SLOTS]);
          expectFetched(room, u32(base + fill));
        }
  });

  test("req_prod that cannot be true is a lie, every other one is not", () => {
    const claims = [
      ...Array.from({ length: 2 * SLOTS + 2 }, (_, claim) => claim),
      ...Array.from({ length: SLOTS }, (_, claim) => u32(-1 - claim)),
      0x7fff_ffff,
      0x8000_0000,
    ];
    for (const base of BASES)
      for (const fill of [0, 1, SLOTS - 1, SLOTS])
        for (const claim of claims) {
          const back = attach(base);
          produce(base, u32(base + fill));
          back.fetch();
          Atomics.store(shared.words, RING_REQ_PROD, u32(base + fill + claim));
          const isTrue = claim <= SLOTS - fill;
          expect(back.fetch()).toBe(isTrue ? claim : RING_LIES);
          if (!isTrue) expect([back.unanswered, back.fetch()]).toEqual([fill, RING_LIES]);
        }
  });

  test("a push wants to notify exactly when it passes rsp_event", () => {
    for (const base of BASES)
      for (const count of [1, 2, SLOTS])
        for (let event = -3; event <= SLOTS + 3; event++) {
          const back = attach(base);
          produce(base, u32(base + SLOTS));
          back.fetch();
          Atomics.store(shared.words, RING_RSP_EVENT, u32(base + event));
          expect(back.push(count)).toBe(event > 0 && event <= count);
        }
  });

  test("asking to be told arms req_event for the next request, and sees one that came before", () => {
    for (const base of BASES) {
      const back = attach(base);
      expect([back.finalCheck(), shared.words[RING_REQ_EVENT]]).toEqual([false, u32(base + 1)]);
      produce(base, u32(base + 2));
      expect(back.finalCheck()).toBe(true);
      back.fetch();
      expect([back.finalCheck(), shared.words[RING_REQ_EVENT]]).toEqual([false, u32(base + 3)]);
    }
  });

  test("responses are written where the requests were, and nothing else is", () => {
    for (const base of BASES) {
      const back = attach(base);
      produce(base, u32(base + SLOTS));
      back.fetch();
      const before = shared.bytes.slice();
      const view = new DataView(back.responses.bytes.buffer);
      for (let i = 0; i < 3; i++) {
        view.setBigUint64(i * abi.responseBytes, BigInt(100 + i), true);
        view.setUint32(i * abi.responseBytes + 8, 0x0102_0304 + i, true);
      }
      back.push(3);
      const after = new DataView(shared.bytes.buffer);
      for (let i = 0; i < 3; i++) {
        const at = slotAt(u32(base + i));
        expect(after.getBigUint64(at, true)).toBe(BigInt(100 + i));
        expect(after.getUint32(at + 8, true)).toBe(0x0102_0304 + i);
        before.set(shared.bytes.subarray(at, at + abi.responseBytes), at);
      }
      before.set(shared.bytes.subarray(8, 12), 8);
      expect(Buffer.compare(shared.bytes, before)).toBe(0);
    }
  });

  test("what a former server left comes first, then the ring goes on", () => {
    for (const base of BASES) {
      const left = new Uint32Array(2 * (REQUEST.bytes / 4));
      left.set([7, 70], 0);
      left.set([8, 80], REQUEST.bytes / 4);
      const back = attach(base, left);
      produce(u32(base + 2), u32(base + 5));
      expect([back.unanswered, back.fetch()]).toEqual([2, 2]);
      expect([0, 28].map((word) => back.requests.words[word])).toEqual([7, 8]);
      expect([back.fetch(), back.unanswered]).toEqual([3, 5]);
      expectFetched(3, u32(base + 2));
      back.push(5);
      expect(shared.words[RING_RSP_PROD]).toBe(u32(base + 5));
    }
  });
});
