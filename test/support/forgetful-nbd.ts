// Run by Bun: an NBD server that forgets what was not flushed when it is killed. What is written waits in memory, and a
// flush brings to the file only what its own connection wrote. It replies in another order than it was asked. Argument:
// ForgetfulOptions as JSON.
import {
  closeSync,
  existsSync,
  fdatasyncSync,
  fstatSync,
  openSync,
  readSync,
  rmSync,
  writeSync,
} from "node:fs";
import { argv } from "node:process";
import {
  encodeGreeting,
  encodeInfo,
  encodeOptionReply,
  NBD_CMD_DISC,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_EINVAL,
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_TRIM,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_EXPORT,
  NBD_OPT_GO,
  NBD_REP_ACK,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  NBD_REQUEST,
  NBD_SIMPLE_REPLY_MAGIC,
  OPTION_HEADER_BYTES,
  SIMPLE_REPLY_BYTES,
} from "../../src/protocol/nbd.ts";

export interface ForgetfulOptions {
  /** By default, it has a socket that listens. */
  readonly socket?: string;
  readonly image: string;
  /** By default, the image's. */
  readonly sizeBytes?: number;
  readonly readOnly?: boolean;
  /** By default it can flush. */
  readonly flushes?: boolean;
  /** By default 512. */
  readonly minBlockBytes?: number;
  /** The largest payload; by default 256 KiB. */
  readonly maxBlockBytes?: number;
  /** How late it carries out what it is sent. Then it says so, and on standard error what comes. By default at once. */
  readonly lagMs?: number;
  /** A file: whoever removes it cuts the connection of its first write, and carries that out a second later. */
  readonly cuts?: string;
}

interface Client {
  pending: Buffer;
  phase: "flags" | "options" | "requests";
  replies: Buffer[];
}

const SECTOR = 512;
const CUT_LAG_MS = 1000;

const options = JSON.parse(argv[2]) as ForgetfulOptions;
const { socket: path, image, sizeBytes, readOnly = false, flushes = true } = options;
const { minBlockBytes = 512, maxBlockBytes = 256 * 1024, lagMs, cuts } = options;
const file = openSync(image, "r+");
const size = sizeBytes ?? fstatSync(file).size;
/** What is not in the file yet: by sector, the data and whoever wrote it. */
const unflushed = new Map<number, { readonly data: Buffer; readonly by: Client }>();

const exported = {
  name: "",
  description: "",
  sizeBytes: size,
  flags:
    NBD_FLAG_HAS_FLAGS |
    (flushes ? NBD_FLAG_SEND_FLUSH : 0) |
    NBD_FLAG_SEND_TRIM |
    NBD_FLAG_CAN_MULTI_CONN |
    (readOnly ? NBD_FLAG_READ_ONLY : 0),
  minBlockBytes,
  preferredBlockBytes: Math.min(maxBlockBytes, Math.max(minBlockBytes, 4096)),
  maxBlockBytes,
};

function read(offset: number, length: number): Buffer {
  const data = Buffer.alloc(length);
  readSync(file, data, 0, length, offset);
  for (let at = 0; at < length; at += SECTOR) unflushed.get((offset + at) / SECTOR)?.data.copy(data, at);
  return data;
}

function write(by: Client, offset: number, data: Buffer): void {
  for (let at = 0; at < data.length; at += SECTOR)
    unflushed.set((offset + at) / SECTOR, { data: Buffer.from(data.subarray(at, at + SECTOR)), by });
}

function flush(by: Client): void {
  for (const [sector, held] of unflushed) {
    if (held.by !== by) continue;
    writeSync(file, held.data, 0, SECTOR, sector * SECTOR);
    unflushed.delete(sector);
  }
  fdatasyncSync(file);
}

/** Takes one message; returns how many bytes it had, 0 while it is not whole. */
function take(socket: Bun.Socket<Client>): number {
  const client = socket.data;
  const { pending } = client;
  if (client.phase === "flags") {
    if (pending.length < 4) return 0;
    client.phase = "options";
    return 4;
  }
  return client.phase === "options" ? negotiate(socket) : answer(socket);
}

function negotiate(socket: Bun.Socket<Client>): number {
  const { pending } = socket.data;
  if (pending.length < OPTION_HEADER_BYTES) return 0;
  const whole = OPTION_HEADER_BYTES + pending.readUInt32BE(12);
  if (pending.length < whole) return 0;
  const option = pending.readUInt32BE(8);
  if (option === NBD_OPT_GO) {
    for (const info of [NBD_INFO_EXPORT, NBD_INFO_BLOCK_SIZE])
      send(socket, encodeOptionReply(option, NBD_REP_INFO, encodeInfo(info, exported)));
    send(socket, encodeOptionReply(option, NBD_REP_ACK));
    socket.data.phase = "requests";
  } else send(socket, encodeOptionReply(option, NBD_REP_ERR_UNSUP));
  return whole;
}

function answer(socket: Bun.Socket<Client>): number {
  const client = socket.data;
  const { pending } = client;
  if (pending.length < NBD_REQUEST.bytes) return 0;
  const command = pending.readUInt16BE(NBD_REQUEST.type);
  const length = pending.readUInt32BE(NBD_REQUEST.length);
  const whole = NBD_REQUEST.bytes + (command === NBD_CMD_WRITE ? length : 0);
  if (pending.length < whole) return 0;
  const offset = Number(pending.readBigUInt64BE(NBD_REQUEST.offset));
  const reply = Buffer.alloc(SIMPLE_REPLY_BYTES);
  reply.writeUInt32BE(NBD_SIMPLE_REPLY_MAGIC);
  pending.copy(reply, 8, NBD_REQUEST.cookie, NBD_REQUEST.cookie + 8);
  let data: Buffer = Buffer.alloc(0);
  const moves = command === NBD_CMD_READ || command === NBD_CMD_WRITE;
  if (moves && length > maxBlockBytes) reply.writeUInt32BE(NBD_EINVAL, 4);
  else if (command === NBD_CMD_READ) data = read(offset, length);
  else if (command === NBD_CMD_WRITE) write(client, offset, pending.subarray(NBD_REQUEST.bytes, whole));
  else if (command === NBD_CMD_TRIM) write(client, offset, Buffer.alloc(length));
  else if (command === NBD_CMD_FLUSH) flush(client);
  if (command === NBD_CMD_DISC) socket.end();
  else client.replies.push(Buffer.concat([reply, data]));
  return whole;
}

const waiting = new Map<Bun.Socket<Client>, Buffer>();

function send(socket: Bun.Socket<Client>, bytes: Uint8Array): void {
  const all = Buffer.concat([waiting.get(socket) ?? Buffer.alloc(0), bytes]);
  waiting.set(socket, all.subarray(Math.max(0, socket.write(all))));
}

function takeAll(socket: Bun.Socket<Client>): void {
  const client = socket.data;
  for (let used = take(socket); used > 0; used = take(socket)) client.pending = client.pending.subarray(used);
  for (const reply of client.replies.splice(0).reverse()) send(socket, reply);
}

function isCut({ pending, phase }: Client): boolean {
  if (cuts === undefined || phase !== "requests" || !existsSync(cuts)) return false;
  if (pending.length < NBD_REQUEST.bytes || pending.readUInt16BE(NBD_REQUEST.type) !== NBD_CMD_WRITE)
    return false;
  rmSync(cuts);
  return true;
}

if (path !== undefined) rmSync(path, { force: true });
// Bun takes a descriptor, which its types do not say.
const at = path === undefined ? { fd: 3 } : { unix: path };
Bun.listen<Client>({
  ...(at as { readonly unix: string }),
  socket: {
    open(socket) {
      socket.data = { pending: Buffer.alloc(0), phase: "flags", replies: [] };
      send(socket, encodeGreeting());
    },
    data(socket, bytes) {
      const client = socket.data;
      client.pending = Buffer.concat([client.pending, bytes]);
      if (isCut(client)) {
        socket.terminate();
        setTimeout(() => takeAll(socket), CUT_LAG_MS);
        return;
      }
      if (lagMs === undefined || client.phase !== "requests") return takeAll(socket);
      console.error("asked");
      setTimeout(() => {
        console.log("carries it out");
        takeAll(socket);
      }, lagMs);
    },
    drain: (socket) => send(socket, Buffer.alloc(0)),
    close: (socket) => void waiting.delete(socket),
    error() {},
  },
});
process.on("exit", () => closeSync(file));
console.log("listening");
