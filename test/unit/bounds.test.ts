// How the sizes and times in the bounds of each folder depend on each other.
import { expect, test } from "bun:test";
import { PAGE_SIZE } from "../../src/core/types.ts";
import * as blkback from "../../src/blkback/bounds.ts";
import * as blkfront from "../../src/blkfront/bounds.ts";
import { XT_REACTOR_WATCHES_MAX } from "../../src/native/abi.ts";
import { ABI_X86_32, ABI_X86_64, BLKIF_MAX_SEGMENTS_PER_REQUEST } from "../../src/protocol/blkif.ts";
import { RING_MAX_PAGE_ORDER, ringSlots } from "../../src/protocol/ring.ts";
import { XS_HEADER_BYTES, XS_PAYLOAD_MAX } from "../../src/protocol/xs-wire.ts";
import { XS_RING_BYTES } from "../../src/protocol/xs-ring.ts";
import * as sim from "../../src/sim/bounds.ts";
import { DEFAULT_LIMITS } from "../../src/sim/limits.ts";
import * as vchan from "../../src/vchan/bounds.ts";
import * as xenstore from "../../src/xenstore/bounds.ts";
import * as xsring from "../../src/xsring/bounds.ts";

/** blkback's table numbers its requests by 16-bit integers with a sign, where -1 stands for none. */
const REQUEST_NUMBERS = 2 ** 15;

/** By folder: what must hold. */
const HOLDS: Readonly<Record<string, Readonly<Record<string, boolean>>>> = {
  blkback: {
    "no ring has more slots": [ABI_X86_32, ABI_X86_64].every(
      ({ slotBytes }) => ringSlots(1 << RING_MAX_PAGE_ORDER, slotBytes) <= blkback.MAX_RING_SLOTS,
    ),
    "every request has a number": blkback.MAX_QUEUES * blkback.MAX_RING_SLOTS <= REQUEST_NUMBERS,
    "merged requests fit into memory, with room for others":
      2 * blkback.MAX_MERGED_BYTES <= blkback.poolBytes(0),
    "a transfer of merged or direct requests is one batch of copies":
      blkback.MAX_MERGED_BYTES / PAGE_SIZE <= blkback.COPY_BATCH,
  },
  vchan: {
    "looks pay before they are at their longest": vchan.LOOK_PAYS_US < vchan.LOOK_US_MAX,
    "a look asks for other events more than once":
      2 * (vchan.LOOK_CHECK_US_MIN + vchan.LOOK_CHECK_SHARE * vchan.LOOK_CHECK_US_MAX) < vchan.LOOK_US_MAX,
    "system calls take a small part of a look": vchan.LOOK_CHECK_SHARE >= 8,
    "the reactor's timeout fits its type": vchan.SLEEP_MS_MAX * 1000 < 2 ** 31,
    "a busy service is retried for 5 seconds": vchan.BUSY_MS * vchan.BUSY_TRIES === 5000,
    "pauses double from the shortest to the longest": vchan.PAUSE_MAX_MS >= 2 * vchan.PAUSE_MIN_MS,
    "a client that was let go finds the server's new keys at its first retry":
      vchan.PAUSE_MIN_MS < vchan.RETRY_MS,
    "a client whose turn is next outlasts the command of the one before":
      2 * vchan.COMMAND_EXIT_MS < vchan.TURN_MS,
    "keys that stayed were not those of a server that closes": vchan.KEYS_STAY_MS > vchan.CLOSING_MS,
    "who is told to stop waits for less than who may go on": vchan.STOP_GRACE_MS < vchan.LINGER_MS,
    "an amount of a benchmark is exact": vchan.BENCH_AMOUNT_MAX <= Number.MAX_SAFE_INTEGER,
  },
  blkfront: {
    "one page at least for each segment of a direct request":
      blkfront.MIN_POOL_PAGES >= BLKIF_MAX_SEGMENTS_PER_REQUEST,
    "two devices find pages": 2 * blkfront.DEFAULT_POOL_PAGES < DEFAULT_LIMITS.sharePages,
    "the largest pool leaves pages for rings":
      blkfront.LARGE_POOL_PAGES + blkfront.MAX_QUEUES < DEFAULT_LIMITS.sharePages,
    "a request of the default size fits the default pool":
      blkfront.DEFAULT_INDIRECT_SEGMENTS < blkfront.DEFAULT_POOL_PAGES,
    "both ends can use as many queues": blkfront.MAX_QUEUES === blkback.MAX_QUEUES,
    "every connection can be watched":
      blkfront.MAX_CONNECTIONS + blkfront.OTHER_WATCHES <= XT_REACTOR_WATCHES_MAX,
    "a connection has what the comment says": blkfront.INPUT_BYTES + blkfront.OUTPUT_BYTES === 2.5 * 2 ** 20,
    "one connection leaves commands for others":
      2 * blkfront.MAX_COMMANDS_PER_CONNECTION <= blkfront.MAX_COMMANDS,
    "NBD's longest name fits an option": blkfront.MAX_OPTION_BYTES > 4096,
    "an option fits the input, with what is received at a time":
      blkfront.MAX_OPTION_BYTES + blkfront.RECEIVE_BYTES < blkfront.INPUT_BYTES,
    "a reply fits the output": blkfront.MAX_REPLY_BYTES < blkfront.OUTPUT_BYTES,
    "what is sent from where it lies is less than what is received":
      blkfront.DIRECT_BYTES <= blkfront.RECEIVE_BYTES,
    "a whole read is one block at most": blkfront.MIN_WHOLE_READ_BYTES <= blkfront.MAX_BLOCK_BYTES,
    "the recommended block is a page": blkfront.PREFERRED_BLOCK_BYTES === PAGE_SIZE,
  },
  xsring: {
    "the fields end within the page": xsring.RING_BYTES_MIN <= PAGE_SIZE,
    "cells have the same size": XS_RING_BYTES % xsring.CELLS === 0,
    "as many requests are followed as a ring holds": xsring.PENDING_MAX >= XS_RING_BYTES / XS_HEADER_BYTES,
    "a fresh ring may have been filled more than once": xsring.FRESH_BYTES_MAX > XS_RING_BYTES,
    "a hexadecimal dump of a page fits": xsring.FILE_BYTES_MAX > 8 * PAGE_SIZE,
    "a server is looked at before it is sent another event": xsring.LOOK_MS < xsring.KICK_MS,
  },
  xenstore: {
    "a domain's newest snapshot may lag most": xenstore.NEWEST_LAG_MAX > xenstore.LAG_MAX,
    "garbage is not collected after each request": xenstore.COLLECT_BYTES > 100 * XS_PAYLOAD_MAX,
    "a turn may hold several reads of a ring": xenstore.TURN_STEPS > xenstore.PUMP_ROUNDS,
    "the pauses of a transaction reach the longest":
      2 ** xenstore.TRANSACTION_ATTEMPTS > xenstore.BACKOFF_MS_MAX,
  },
  sim: {
    "what is shared has a grant": DEFAULT_LIMITS.sharePages <= DEFAULT_LIMITS.grantEntries,
    "all that is granted can be mapped": DEFAULT_LIMITS.grantEntries <= DEFAULT_LIMITS.maptrack,
    "a host that starts is waited for longer than one that answers":
      sim.DAEMON_START_MS > sim.CONTROL_TIMEOUT_MS,
  },
};

for (const [folder, relations] of Object.entries(HOLDS))
  test(`of ${folder}`, () => {
    expect(Object.entries(relations).filter(([, holds]) => !holds)).toEqual([]);
  });
