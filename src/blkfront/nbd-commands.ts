// The transmission phase: requests of all connections become operations of one data plane, and their completions become
// replies. A command is started chunk by chunk as the ring, the pool and its client's buffers have room. Pages are
// held only while a chunk is on the ring, so no client can keep them from the others.
import { PAGE_SIZE } from "../core/types.ts";
import { shim, type Pointer } from "../native/shim.ts";
import {
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_RSP_EOPNOTSUPP,
  BLKIF_RSP_OKAY,
  SECTOR_SIZE,
} from "../protocol/blkif.ts";
import {
  DATA_CHUNK_BYTES,
  ERROR_CHUNK_BYTES,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_EINVAL,
  NBD_EIO,
  NBD_ENOSPC,
  NBD_ENOTSUP,
  NBD_EOVERFLOW,
  NBD_EPERM,
  NBD_REQUEST,
  NBD_REQUEST_MAGIC,
  writeDataChunk,
  writeErrorChunk,
  writeSimpleReply,
} from "../protocol/nbd.ts";
import {
  NBD_CHUNK_BYTES,
  MAX_BLOCK_BYTES,
  MAX_COMMANDS,
  MAX_COMMANDS_PER_CONNECTION,
  ZEROES_CHUNKS,
  ZEROES_CHUNK_BYTES,
} from "./bounds.ts";
import type { Disk } from "./handshake.ts";
import { ChunkTable, CommandTable } from "./nbd-command-table.ts";
import { DEAD, FINISHING, READY, type NbdConnection } from "./nbd-connection.ts";
import { canMakeDurable, canReadWhole } from "./nbd-export.ts";
import type { FrontDataPlane } from "./data-plane.ts";

const TWO_32 = 2 ** 32;

export class NbdCommands {
  /** Replaced when the disk is resized. */
  disk: Disk;
  /** The most data of one operation, and so the most of a read that is sent in one piece. */
  readonly chunkBytes: number;
  readonly #plane: FrontDataPlane;
  readonly #commands = new CommandTable(MAX_COMMANDS);
  readonly #chunks: ChunkTable;
  /** Commands whose data is written but whose flush found no room. */
  readonly #flushes = new Uint16Array(MAX_COMMANDS);
  #flushCount = 0;

  /** Takes over the whole disk, which has a tag for each slot of its rings. */
  constructor(plane: FrontDataPlane, disk: Disk, tags: number) {
    this.#plane = plane;
    this.disk = disk;
    this.#chunks = new ChunkTable(tags);
    let chunkBytes = NBD_CHUNK_BYTES;
    while (plane.transfersThatFit(chunkBytes) === 0) chunkBytes /= 2;
    this.chunkBytes = chunkBytes;
    plane.onDone = (tag, status) => this.#chunkDone(tag, status);
  }

  /** Starts as much as possible of what `connection` has sent. */
  advance(connection: NbdConnection): void {
    while (connection.state === READY) {
      if (!this.#skip(connection)) break;
      if (connection.current < 0 && !this.#parse(connection)) break;
      if (connection.current >= 0 && !this.#start(connection, connection.current)) break;
    }
  }

  /** Starts flushes that found no room before. */
  retryFlushes(): void {
    const count = this.#flushCount;
    this.#flushCount = 0;
    for (let index = 0; index < count; index++) this.#flush(this.#flushes[index]);
  }

  /** Drops what a dead connection has not started. True when nothing of it is in flight any more. */
  abandon(connection: NbdConnection): boolean {
    const row = connection.current;
    connection.current = -1;
    if (row >= 0 && this.#commands.pending[row] === 0) this.#commands.release(row);
    return connection.outstanding === 0;
  }

  // 1. Requests arrive.

  /** Discards the payload of a refused write. True when all of it is gone. */
  #skip(connection: NbdConnection): boolean {
    const { input } = connection;
    const bytes = Math.min(connection.skip, input.size);
    if (bytes > 0) input.consume(bytes);
    connection.skip -= bytes;
    if (connection.skip > 0 && connection.ended) connection.kill();
    return connection.skip === 0;
  }

  /** Takes the next request off the input, and refuses an invalid one. False: there is none, or no room. */
  #parse(connection: NbdConnection): boolean {
    const { input } = connection;
    if (input.size < NBD_REQUEST.bytes) {
      if (connection.ended) connection.state = FINISHING;
      return false;
    }
    const { view, head } = input;
    if (view.getUint32(head + NBD_REQUEST.magic) !== NBD_REQUEST_MAGIC) {
      connection.kill();
      return false;
    }
    const full = this.#commands.freeCount === 0 || connection.outstanding >= MAX_COMMANDS_PER_CONNECTION;
    if (full || !connection.promise(ERROR_CHUNK_BYTES)) return false;
    const flags = view.getUint16(head + NBD_REQUEST.flags);
    const type = view.getUint16(head + NBD_REQUEST.type);
    const length = view.getUint32(head + NBD_REQUEST.length);
    const offsetHigh = view.getUint32(head + NBD_REQUEST.offset);
    const offset = offsetHigh * TWO_32 + view.getUint32(head + NBD_REQUEST.offset + 4);
    const commands = this.#commands;
    const row = commands.take(connection);
    commands.cookieHigh[row] = view.getUint32(head + NBD_REQUEST.cookie);
    commands.cookieLow[row] = view.getUint32(head + NBD_REQUEST.cookie + 4);
    input.consume(NBD_REQUEST.bytes);
    if (type === NBD_CMD_DISC) {
      connection.redeem(ERROR_CHUNK_BYTES);
      commands.release(row);
      connection.state = FINISHING;
      return false;
    }
    commands.type[row] = type;
    const error = this.#refusal(connection, type, flags, offset, length);
    if (error !== 0) {
      this.#refuse(connection, row, type, error, length);
      return connection.state === READY;
    }
    commands.offset[row] = offset;
    commands.length[row] = length;
    commands.fua[row] = (flags & NBD_CMD_FLAG_FUA) !== 0 && changes(type) ? 1 : 0;
    const isLongRead = type === NBD_CMD_READ && length > this.chunkBytes;
    commands.exclusive[row] = isLongRead && !connection.structured ? 1 : 0;
    connection.current = row;
    return true;
  }

  #refuse(connection: NbdConnection, row: number, type: number, error: number, length: number): void {
    // The payload must be read to find the next request, but beyond the limit that was announced that is hopeless.
    if (type === NBD_CMD_WRITE && length > MAX_BLOCK_BYTES) connection.kill();
    if (type === NBD_CMD_WRITE) connection.skip = length;
    this.#commands.error[row] = error;
    this.#answer(row);
  }

  /** The error with which a request is refused at once, or 0. */
  #refusal(connection: NbdConnection, type: number, flags: number, offset: number, length: number): number {
    const { disk } = this;
    const durable = canMakeDurable(disk);
    let allowed = durable ? NBD_CMD_FLAG_FUA : 0;
    if (type === NBD_CMD_READ && connection.structured && canReadWhole(this.chunkBytes))
      allowed |= NBD_CMD_FLAG_DF;
    if (type === NBD_CMD_WRITE_ZEROES) allowed |= NBD_CMD_FLAG_NO_HOLE;
    if ((flags & ~allowed) !== 0) return NBD_EINVAL;
    if (changes(type) && disk.readOnly) return NBD_EPERM;
    if (type === NBD_CMD_FLUSH) return durable ? 0 : NBD_EINVAL;
    if (type !== NBD_CMD_READ && !changes(type)) return NBD_EINVAL;
    if (type === NBD_CMD_TRIM && !disk.canDiscard) return NBD_EINVAL;
    const unit = disk.logicalSectorBytes;
    if (length === 0 || length % unit !== 0 || offset % unit !== 0) return NBD_EINVAL;
    if (offset + length > disk.sectors512 * SECTOR_SIZE)
      return type === NBD_CMD_WRITE || type === NBD_CMD_WRITE_ZEROES ? NBD_ENOSPC : NBD_EINVAL;
    const carries = type === NBD_CMD_READ || type === NBD_CMD_WRITE;
    if (carries && length > MAX_BLOCK_BYTES) return NBD_EINVAL;
    if ((flags & NBD_CMD_FLAG_DF) !== 0 && length > this.chunkBytes) return NBD_EOVERFLOW;
    return 0;
  }

  // 2. I/O is started.

  /** Starts chunks of the connection's current command. True when it needs no more attention. */
  #start(connection: NbdConnection, row: number): boolean {
    const commands = this.#commands;
    const length = commands.length[row];
    if (commands.type[row] === NBD_CMD_FLUSH) {
      if (!this.#startFlush(row)) return false;
    } else {
      while (commands.started[row] < length) {
        if (commands.error[row] !== 0) return this.#giveUp(connection, row);
        if (!this.#startChunk(connection, row)) return false;
      }
      if (commands.exclusive[row] === 1 && commands.pending[row] !== 0) return false;
    }
    connection.current = -1;
    return true;
  }

  /** Gives up a command that failed in part: the rest of it is not started. */
  #giveUp(connection: NbdConnection, row: number): boolean {
    const commands = this.#commands;
    const left = commands.length[row] - commands.started[row];
    if (commands.type[row] === NBD_CMD_WRITE) connection.skip = left;
    commands.length[row] = commands.started[row];
    connection.current = -1;
    if (commands.pending[row] === 0) this.#answer(row);
    return true;
  }

  #startChunk(connection: NbdConnection, row: number): boolean {
    if (this.#chunks.freeCount === 0) return false;
    switch (this.#commands.type[row]) {
      case NBD_CMD_READ:
        return this.#startRead(connection, row);
      case NBD_CMD_WRITE:
        return this.#startWrite(connection, row);
      case NBD_CMD_TRIM:
        return this.#startTrim(row);
      default:
        return this.#startZeroes(row);
    }
  }

  #startRead(connection: NbdConnection, row: number): boolean {
    const commands = this.#commands;
    if (commands.exclusive[row] === 1 && (connection.outstanding > 1 || commands.pending[row] !== 0))
      return false;
    const bytes = this.#nextBytes(row, this.chunkBytes);
    if (!connection.promise(DATA_CHUNK_BYTES + bytes)) return false;
    if (this.#startTransfer(BLKIF_OP_READ, row, bytes, 0)) return true;
    connection.redeem(DATA_CHUNK_BYTES + bytes);
    return false;
  }

  #startWrite(connection: NbdConnection, row: number): boolean {
    const { input } = connection;
    const bytes = this.#nextBytes(row, this.chunkBytes);
    if (input.size < bytes) {
      if (connection.ended) connection.kill();
      return false;
    }
    if (!this.#startTransfer(BLKIF_OP_WRITE, row, bytes, input.headAddress)) return false;
    input.consume(bytes);
    return true;
  }

  /** Starts a transfer of the next `bytes` of `row`; a write takes its data from address `from`. */
  #startTransfer(
    op: typeof BLKIF_OP_READ | typeof BLKIF_OP_WRITE,
    row: number,
    bytes: number,
    from: number,
  ): boolean {
    const { pool } = this.#plane;
    const pages = Math.ceil(bytes / PAGE_SIZE);
    const page = pool.allocate(pages);
    if (page < 0) return false;
    if (!this.#plane.transfer(op, this.#chunks.next, this.#nextSector(row), page, bytes)) {
      pool.release(page, pages);
      return false;
    }
    if (op === BLKIF_OP_WRITE) shim.xt_memory_copy(pool.addressOf(page) as Pointer, from as Pointer, bytes);
    this.#started(row, page, pages, bytes);
    return true;
  }

  #startTrim(row: number): boolean {
    const bytes = this.#commands.length[row];
    const sectors = bytes / SECTOR_SIZE;
    if (!this.#plane.discard(this.#chunks.next, this.#nextSector(row), sectors)) return false;
    this.#started(row, 0, 0, bytes);
    return true;
  }

  #startZeroes(row: number): boolean {
    if (this.#commands.pending[row] >= ZEROES_CHUNKS) return false;
    const most = Math.min(ZEROES_CHUNK_BYTES, this.chunkBytes * 8);
    const bytes = this.#nextBytes(row, most);
    if (!this.#plane.writeZeroes(this.#chunks.next, this.#nextSector(row), bytes)) return false;
    this.#started(row, 0, 0, bytes);
    return true;
  }

  #startFlush(row: number): boolean {
    if (this.#chunks.freeCount === 0) return false;
    const tag = this.#chunks.next;
    if (!(this.disk.canFlush ? this.#plane.flush(tag) : this.#plane.barrier(tag))) return false;
    this.#started(row, 0, 0, 0);
    return true;
  }

  #started(row: number, page: number, pages: number, bytes: number): void {
    const commands = this.#commands;
    this.#chunks.take(row, page, pages, commands.started[row], bytes);
    commands.started[row] = commands.started[row] + bytes;
    commands.pending[row] = commands.pending[row] + 1;
  }

  #nextBytes(row: number, most: number): number {
    return Math.min(most, this.#commands.length[row] - this.#commands.started[row]);
  }

  #nextSector(row: number): number {
    return (this.#commands.offset[row] + this.#commands.started[row]) / SECTOR_SIZE;
  }

  // 3. I/O completes.

  #chunkDone(tag: number, status: number): void {
    const commands = this.#commands;
    const chunks = this.#chunks;
    const row = chunks.command[tag];
    const connection = commands.connection[row] as NbdConnection;
    const left = commands.pending[row] - 1;
    commands.pending[row] = left;
    if (status !== BLKIF_RSP_OKAY && commands.error[row] === 0)
      commands.error[row] = status === BLKIF_RSP_EOPNOTSUPP ? NBD_ENOTSUP : NBD_EIO;
    if (commands.type[row] === NBD_CMD_READ) this.#deliver(connection, row, tag, status === BLKIF_RSP_OKAY);
    const pages = chunks.pages[tag];
    if (pages > 0) this.#plane.pool.release(chunks.page[tag], pages);
    chunks.release(tag);
    if (left > 0) return;
    if (connection.current === row) {
      // Only an exclusive read stays current until its last chunk is done.
      if (commands.exclusive[row] === 0 || commands.started[row] !== commands.length[row]) return;
      connection.current = -1;
    }
    this.#finish(row);
  }

  /** Sends the data of a chunk. The last one of a successful read also ends the reply. */
  #deliver(connection: NbdConnection, row: number, tag: number, ok: boolean): void {
    const commands = this.#commands;
    const offset = this.#chunks.offset[tag];
    const bytes = this.#chunks.length[tag];
    const address = this.#plane.pool.addressOf(this.#chunks.page[tag]);
    connection.redeem(DATA_CHUNK_BYTES + bytes);
    if (!ok) {
      // The reply has started as a success, and a simple reply cannot take that back.
      if (commands.exclusive[row] === 1 && offset > 0) connection.kill();
      return;
    }
    const high = commands.cookieHigh[row];
    const low = commands.cookieLow[row];
    const at = connection.headerAt();
    const view = connection.outputView;
    if (connection.structured) {
      const all = commands.pending[row] === 0 && commands.started[row] === commands.length[row];
      const done = all && commands.error[row] === 0;
      const where = commands.offset[row] + offset;
      connection.reply(writeDataChunk(view, at, done, high, low, where, bytes), address, bytes);
    } else {
      const header = offset === 0 ? writeSimpleReply(view, at, 0, high, low) : 0;
      connection.reply(header, address, bytes);
    }
  }

  /** All chunks are done: a flush or the reply follows, or nothing. */
  #finish(row: number): void {
    const commands = this.#commands;
    const connection = commands.connection[row] as NbdConnection;
    const ok = commands.error[row] === 0;
    if (connection.state === DEAD) commands.release(row);
    else if (ok && commands.fua[row] === 1) this.#flush(row);
    else if (ok && commands.type[row] === NBD_CMD_READ) this.#forget(connection, row);
    else this.#answer(row);
  }

  #flush(row: number): void {
    const commands = this.#commands;
    if ((commands.connection[row] as NbdConnection).state === DEAD) commands.release(row);
    else if (this.#startFlush(row)) commands.fua[row] = 0;
    else this.#flushes[this.#flushCount++] = row;
  }

  /** Replies to a command that has no data, or failed. */
  #answer(row: number): void {
    const commands = this.#commands;
    const connection = commands.connection[row] as NbdConnection;
    const high = commands.cookieHigh[row];
    const low = commands.cookieLow[row];
    const error = commands.error[row];
    const at = connection.headerAt();
    const view = connection.outputView;
    const chunk = connection.structured && commands.type[row] === NBD_CMD_READ;
    const bytes = chunk
      ? writeErrorChunk(view, at, error, high, low)
      : writeSimpleReply(view, at, error, high, low);
    connection.reply(bytes, 0, 0);
    this.#forget(connection, row);
  }

  #forget(connection: NbdConnection, row: number): void {
    connection.redeem(ERROR_CHUNK_BYTES);
    this.#commands.release(row);
  }
}

/** Whether a command of this type changes the disk. */
function changes(type: number): boolean {
  return type === NBD_CMD_WRITE || type === NBD_CMD_TRIM || type === NBD_CMD_WRITE_ZEROES;
}
