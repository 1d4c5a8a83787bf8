// The wire protocol against golden bytes written down by hand from xs_wire.h, and the parser against
// streams cut at random places.
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import * as wire from "../../src/protocol/xs-wire.ts";
import { chosenSeed } from "../support/random.ts";

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
const seed = chosenSeed();

describe("packets", () => {
  test.each<[string, Uint8Array, string]>([
    [
      "READ /a",
      wire.encodePacket(2, 1, 0, wire.encodeStrings("/a")),
      "02000000" + "01000000" + "00000000" + "03000000" + "2f6100",
    ],
    [
      "WRITE /a = 1 in transaction 7",
      wire.encodePacket(wire.XS_WRITE, 0x01020304, 7, wire.encodePathAndValue("/a", wire.encodeText("1"))),
      "0b000000" + "04030201" + "07000000" + "04000000" + "2f610031",
    ],
    [
      "ENOENT",
      wire.encodePacket(wire.XS_ERROR, 9, 0, wire.encodeStrings("ENOENT")),
      "10000000" + "09000000" + "00000000" + "07000000" + "454e4f454e5400",
    ],
    [
      "WATCH_EVENT",
      wire.encodePacket(wire.XS_WATCH_EVENT, 0, 0, wire.encodeStrings("/a", "tok")),
      "0f000000" + "00000000" + "00000000" + "07000000" + "2f6100746f6b00",
    ],
    [
      "nothing",
      wire.encodePacket(wire.XS_RESET_WATCHES, 0xffffffff, 0),
      "15000000" + "ffffffff" + "00000000" + "00000000",
    ],
  ])("%s", (_name, packet, expected) => {
    expect(hex(packet)).toBe(expected);
  });

  test("types have the numbers of xs_wire.h", () => {
    const names = Array.from({ length: 27 }, (_, type) => wire.xsTypeName(type) ?? "-").join(" ");
    expect(names).toBe(
      "CONTROL DIRECTORY READ GET_PERMS WATCH UNWATCH TRANSACTION_START TRANSACTION_END INTRODUCE RELEASE " +
        "GET_DOMAIN_PATH WRITE MKDIR RM SET_PERMS WATCH_EVENT ERROR IS_DOMAIN_INTRODUCED RESUME SET_TARGET - " +
        "RESET_WATCHES DIRECTORY_PART GET_FEATURE SET_FEATURE GET_QUOTA SET_QUOTA",
    );
    expect(wire.xsTypeName(27)).toBeUndefined();
  });

  test("strings end with a NUL each", () => {
    expect(wire.decodeStrings(wire.encodeStrings("a", "", "b"))).toEqual(["a", "", "b"]);
    expect(wire.decodeStrings(new Uint8Array(0))).toEqual([]);
    expect(wire.decodeStrings(wire.encodeText("a\0b"))).toBeUndefined();
  });
});

describe("the parser", () => {
  const packets = fc.array(
    fc.record({
      type: fc.nat(30),
      reqId: fc.nat(0xffffffff),
      txId: fc.nat(0xffffffff),
      payload: fc.uint8Array({ maxLength: 300 }),
    }),
    { maxLength: 20 },
  );

  test(`takes any packets in any fragments (SEED=${seed})`, () => {
    fc.assert(
      fc.property(packets, fc.array(fc.integer({ min: 1, max: 200 }), { minLength: 1 }), (sent, sizes) => {
        const stream = Buffer.concat(sent.map((p) => wire.encodePacket(p.type, p.reqId, p.txId, p.payload)));
        const parser = new wire.XsPacketParser();
        const got: wire.XsPacket[] = [];
        for (let at = 0, turn = 0; at < stream.length; turn++) {
          const size = sizes[turn % sizes.length];
          parser.push(stream.subarray(at, at + size));
          at += size;
          if (turn % 3 !== 0) for (let p = parser.next(); p !== undefined; p = parser.next()) got.push(p);
        }
        for (let p = parser.next(); p !== undefined; p = parser.next()) got.push(p);
        expect(got).toEqual(sent);
        expect(parser.bufferedBytes).toBe(0);
      }),
      { seed },
    );
  });

  test("takes the longest payload and refuses one byte more", () => {
    const parser = new wire.XsPacketParser();
    parser.push(wire.encodePacket(2, 1, 0, new Uint8Array(4096)));
    expect(parser.next()?.payload).toHaveLength(4096);
    parser.push(wire.encodePacket(2, 1, 0, new Uint8Array(4097)).subarray(0, 16));
    expect(parser.next()).toBeUndefined();
    expect(parser.violation).toBe(4097);
    parser.push(wire.encodePacket(2, 1, 0));
    expect(parser.next()).toBeUndefined();
    parser.reset();
    parser.push(wire.encodePacket(2, 5, 0));
    expect(parser.next()?.reqId).toBe(5);
  });

  test("clamps as oxenstored does, and loses the boundary as it does", () => {
    const parser = new wire.XsPacketParser("clamp");
    const header = wire.encodePacket(2, 1, 0);
    new DataView(header.buffer).setUint32(12, 0xffffffff, true);
    parser.push(header);
    parser.push(new Uint8Array(4096 + 16));
    expect(parser.next()?.payload).toHaveLength(4096);
    expect(parser.next()?.type).toBe(0);
  });

  test("a payload stays as it was when more comes", () => {
    const parser = new wire.XsPacketParser();
    parser.push(wire.encodePacket(2, 1, 0, Uint8Array.of(1, 2, 3)));
    const first = parser.next();
    parser.push(wire.encodePacket(2, 2, 0, Uint8Array.of(9, 9, 9)));
    expect(first?.payload).toEqual(Uint8Array.of(1, 2, 3));
  });
});

describe("permissions", () => {
  test.each<[string, wire.XsPermission]>([
    ["n0", { domid: 0, access: "none" }],
    ["r5", { domid: 5, access: "read" }],
    ["w17", { domid: 17, access: "write" }],
    ["b65535", { domid: 65535, access: "both" }],
  ])("%s", (text, permission) => {
    expect(wire.parsePermission(text)).toEqual(permission);
    expect(wire.formatPermission(permission)).toBe(text);
  });

  test.each(["", "n", "x1", "r-1", "r65536", "r1 ", "rr1", "r1\n", "1"])("%j is none", (text) => {
    expect(wire.parsePermission(text)).toBeUndefined();
  });
});

describe("paths", () => {
  test.each([
    "/",
    "/a",
    "/a/b-c_d@e/0",
    "a",
    "data/x",
    "@releaseDomain",
    "@releaseDomain/5",
    "/local/domain/0",
  ])("%s is valid", (path) => expect(wire.isValidPath(path)).toBe(true));
  test.each(["", "//", "/a/", "/a//b", "a/", "/a b", "/a\n", "a\n", "/ä", "/a.b", "/a%", "/a\0"])(
    "%j is not valid",
    (path) => expect(wire.isValidPath(path)).toBe(false),
  );

  test("lengths are limited", () => {
    expect(wire.isValidPath(`/${"a".repeat(3071)}`)).toBe(true);
    expect(wire.isValidPath(`/${"a".repeat(3072)}`)).toBe(false);
    expect(wire.isValidPath("a".repeat(2048))).toBe(true);
    expect(wire.isValidPath("a".repeat(2049))).toBe(false);
  });

  test("parents and descendants", () => {
    expect(["/a/b", "/a", "/"].map(wire.parentPath)).toEqual(["/a", "/", "/"]);
    expect([wire.joinPath("/", "a"), wire.joinPath("/a", "b")]).toEqual(["/a", "/a/b"]);
    expect(wire.isWithin("/a/b", "/a")).toBe(true);
    expect(wire.isWithin("/ab", "/a")).toBe(false);
    expect(wire.isWithin("/a", "/a")).toBe(true);
    expect(wire.isWithin("/a", "/")).toBe(true);
  });
});
