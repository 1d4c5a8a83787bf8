// One client of the NBD server, at a socket pair: when the server has to look at it again.
import { expect, test } from "bun:test";
import { closeSync, readSync } from "node:fs";
import { OUTPUT_BYTES } from "../../src/blkfront/bounds.ts";
import { NbdConnection, READY } from "../../src/blkfront/nbd-connection.ts";
import { socketPair } from "../../src/native/descriptors.ts";
import { Reactor } from "../../src/native/reactor.ts";

/** Of a reply's header, which here is all of it. */
const REPLY_BYTES = 16;

test("a client in the middle of a long read is looked at again when it has taken all that waited for it", () => {
  using reactor = Reactor.open(1, "sync", 1);
  const { ours, theirs } = socketPair("bytes");
  const connection = new NbdConnection(ours, reactor, () => {
    throw new Error("nothing is negotiated here");
  });
  try {
    connection.send();
    readSync(theirs, Buffer.alloc(1024));
    connection.state = READY;
    // Its only request is taken off its input, and a part of it is answered.
    connection.current = 0;
    connection.headerAt();
    connection.reply(REPLY_BYTES, 0, 0);
    // There is no room for the next part before that is sent, which then is the last thing that happens.
    expect(connection.promise(OUTPUT_BYTES)).toBe(false);
    expect(connection.send()).toBe(true);
    expect(connection.promise(OUTPUT_BYTES)).toBe(true);
  } finally {
    connection.close();
    closeSync(theirs);
  }
});
