// Option haggling of the NBD server: bytes as doc/proto.md of NBD has them, written out here by hand, in
// whole and in pieces, and clients that make no sense.
import { expect, test } from "bun:test";
import { exportOf } from "../../src/blkfront/nbd-export.ts";
import { NbdHandshake, type HandshakeOutcome } from "../../src/blkfront/nbd-handshake.ts";
import { chosenSeed } from "../support/random.ts";

const DISK = {
  sectors512: 2048,
  logicalSectorBytes: 512,
  physicalSectorBytes: 4096,
  readOnly: false,
  cdrom: false,
  canFlush: true,
  canBarrier: true,
  canDiscard: true,
  canSecureDiscard: false,
  discardGranularityBytes: 4096,
};
const FLAGS_RW = "016d"; // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN
const IHAVEOPT = "49484156454f5054";
const REPLY = "0003e889045565a9";
const SIZE = "0000000000100000";
const EXPORT_INFO = `0000${SIZE}${FLAGS_RW}`;
const BLOCK_INFO = "0003" + "00000200" + "00001000" + "02000000";

interface Talk {
  readonly reply: string;
  readonly outcome: HandshakeOutcome;
  readonly left: number;
  readonly handshake: NbdHandshake;
}

/** Says `hex` to a fresh server, `size` bytes at a time. */
function say(hex: string, size = Infinity, disk = DISK, pieceBytes = 128 << 10): Talk {
  const handshake = new NbdHandshake(() => exportOf(disk, "xvdb", pieceBytes));
  const all = Buffer.from(hex, "hex");
  let reply = "";
  let at = 0;
  for (let end = Math.min(size, all.length); ; end = Math.min(end + size, all.length)) {
    for (;;) {
      const step = handshake.step(all.subarray(at, end));
      at += step.consumed;
      reply += Buffer.from(step.reply).toString("hex");
      if (step.outcome !== "more") return { reply, outcome: step.outcome, left: all.length - at, handshake };
      if (step.consumed === 0) break;
    }
    if (end === all.length) return { reply, outcome: "more", left: all.length - at, handshake };
  }
}

function u32(value: number): string {
  return value.toString(16).padStart(8, "0");
}

function option(number: number, data = ""): string {
  return IHAVEOPT + u32(number) + u32(data.length / 2) + data;
}

function reply(number: number, type: number, data = ""): string {
  return REPLY + u32(number) + u32(type) + u32(data.length / 2) + data;
}

const FLAGS = "00000003";
const ACK = 1;
const INFO = 3;
const ERR_UNSUP = 0x80000001;
const ERR_INVALID = 0x80000003;
const ERR_UNKNOWN = 0x80000006;
const ERR_TOO_BIG = 0x80000009;
const NAME = Buffer.from("xvdb").toString("hex");

test("the greeting", () => {
  const { handshake } = say("");
  expect(Buffer.from(handshake.greeting).toString("hex")).toBe("4e42444d41474943" + IHAVEOPT + "0003");
});

test.each([Infinity, 1, 7])("GO for the default export, %d bytes at a time", (size) => {
  const talk = say(FLAGS + option(7, u32(0) + "0000"), size);
  expect(talk.reply).toBe(reply(7, INFO, EXPORT_INFO) + reply(7, INFO, BLOCK_INFO) + reply(7, ACK));
  expect(talk.outcome).toBe("transmission");
});

test("INFO tells the same and goes on; a name and a description when asked", () => {
  const talk = say(FLAGS + option(6, u32(4) + NAME + "0003" + "0001" + "0002" + "00ff"));
  const description = Buffer.from("PV disk xvdb").toString("hex");
  expect(talk.reply).toBe(
    reply(6, INFO, EXPORT_INFO) +
      reply(6, INFO, BLOCK_INFO) +
      reply(6, INFO, "0001" + NAME) +
      reply(6, INFO, "0002" + description) +
      reply(6, ACK),
  );
  expect(talk.outcome).toBe("more");
});

test("structured replies, and what they allow", () => {
  const talk = say(FLAGS + option(8) + option(7, u32(0) + "0000"));
  expect(talk.handshake.structured).toBe(true);
  expect(talk.reply).toStartWith(reply(8, ACK) + reply(7, INFO, `0000${SIZE}01ed`));
});

test.each([
  [64 << 10, "01ed"],
  [32 << 10, FLAGS_RW],
])("reads in one piece, by a server whose pieces have %d bytes", (pieceBytes, flags) => {
  // NBD wants 64 KiB in one piece from each server that offers DF.
  const talk = say(FLAGS + option(8) + option(1), Infinity, DISK, pieceBytes);
  expect(talk.reply).toBe(reply(8, ACK) + SIZE + flags);
});

test("EXPORT_NAME, with and without padding", () => {
  expect(say("00000003" + option(1)).reply).toBe(SIZE + FLAGS_RW);
  const padded = say("00000001" + option(1, NAME));
  expect(padded.reply).toBe(SIZE + FLAGS_RW + "00".repeat(124));
  expect(padded.outcome).toBe("transmission");
  expect(say("00000000" + option(1)).reply.length).toBe(134 * 2);
});

test("a request that follows at once is left alone", () => {
  const talk = say(FLAGS + option(7, u32(0) + "0000") + "2560951300");
  expect(talk.outcome).toBe("transmission");
  expect(talk.left).toBe(5);
});

test("LIST, ABORT, and options that we do not have", () => {
  const entry = u32(4) + NAME + Buffer.from("PV disk xvdb").toString("hex");
  expect(say(FLAGS + option(3)).reply).toBe(reply(3, 2, entry) + reply(3, ACK));
  expect(say(FLAGS + option(3, "00")).reply).toBe(reply(3, ERR_INVALID));
  expect(say(FLAGS + option(8, "00")).reply).toBe(reply(8, ERR_INVALID));
  const abort = say(FLAGS + option(2) + option(3));
  expect(abort).toMatchObject({ reply: reply(2, ACK), outcome: "end" });
  for (const unknown of [5, 9, 10, 11, 0xffffffff])
    expect(say(FLAGS + option(unknown, "aabbcc")).reply).toBe(reply(unknown, ERR_UNSUP));
});

test("an export that is not there", () => {
  const other = Buffer.from("xvdc").toString("hex");
  expect(say(FLAGS + option(7, u32(4) + other + "0000"))).toMatchObject({
    reply: reply(7, ERR_UNKNOWN),
    outcome: "more",
  });
  expect(say(FLAGS + option(1, other))).toMatchObject({ reply: "", outcome: "end" });
});

test.each([
  ["empty", ""],
  ["a name longer than the option", u32(100) + "0000"],
  ["a name of 4 GiB", u32(0xffffffff) + "0000"],
  ["fewer items than counted", u32(0) + "0002" + "0001"],
  ["more items than counted", u32(0) + "0000" + "0001"],
])("GO with %s is invalid, and the next one is not", (_name, data) => {
  const talk = say(FLAGS + option(7, data) + option(7, u32(0) + "0000"));
  expect(talk.reply).toStartWith(reply(7, ERR_INVALID) + reply(7, INFO, EXPORT_INFO));
  expect(talk.outcome).toBe("transmission");
});

test.each([
  ["flags that nobody defined", "00000007"],
  ["a wrong magic", FLAGS + "4948415645004654" + u32(7) + u32(0)],
  ["an option of 4 GiB", FLAGS + IHAVEOPT + u32(7) + "ffffffff"],
  ["an option of more than 32 MiB", FLAGS + IHAVEOPT + u32(7) + u32((32 << 20) + 1)],
  ["a name to export that is too long", FLAGS + IHAVEOPT + u32(1) + u32(8193)],
])("%s ends it", (_name, hex) => {
  expect(say(hex)).toMatchObject({ reply: "", outcome: "end" });
});

test.each([Infinity, 4000])(
  "an option of 8193 bytes is too big, and the next one is not, %d bytes at a time",
  (size) => {
    const talk = say(
      FLAGS + option(7, "ff".repeat(8193)) + option(99, "ff".repeat(20_000)) + option(8),
      size,
    );
    expect(talk.reply).toBe(reply(7, ERR_TOO_BIG) + reply(99, ERR_TOO_BIG) + reply(8, ACK));
    expect(talk.outcome).toBe("more");
  },
);

test("what a disk can do decides the flags", () => {
  const flags = (changes: object): string =>
    say(FLAGS + option(1), Infinity, { ...DISK, ...changes }).reply.slice(16);
  expect(flags({})).toBe(FLAGS_RW);
  expect(flags({ readOnly: true })).toBe("010f");
  expect(flags({ canDiscard: false })).toBe("014d");
  expect(flags({ canFlush: false })).toBe(FLAGS_RW);
  expect(flags({ canFlush: false, canBarrier: false })).toBe("0161");
});

test("random bytes never throw and never take more than there is", () => {
  const seed = chosenSeed();
  let random = seed | 1;
  const next = (): number => {
    random ^= random << 13;
    random ^= random >>> 17;
    random ^= random << 5;
    return random >>> 0;
  };
  for (let round = 0; round < 3000; round++) {
    const length = next() % 60;
    const bytes = Array.from({ length }, () => (next() % 256).toString(16).padStart(2, "0")).join("");
    const options = option(next() % 12, bytes) + option(next() % 12, bytes.slice(0, 12)) + bytes;
    const talk = say(FLAGS + options, 1 + (next() % 40));
    expect(talk.left, `SEED=${seed}`).toBeGreaterThanOrEqual(0);
  }
});
