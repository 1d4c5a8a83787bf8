// What one domain can cost the server, and so all others: memory, time, and its place in the queue.
import { expect, test } from "bun:test";
import * as xs from "../../src/protocol/xs-wire.ts";
import { PERSONALITIES } from "../../src/xenstore/server/personality.ts";
import { ServerFixture } from "./xenstore-harness.ts";

test.each(["xenstored-4.17", "xenstored-4.22"] as const)(
  "a node that a transaction was refused is not remembered (%s)",
  async (name) => {
    const fixture = new ServerFixture(name, {
      quotas: { ...PERSONALITIES[name].quotas, transactionNodes: 10 },
    });
    const client = fixture.client(1);
    const id = Number.parseInt(await client.ask(xs.XS_TRANSACTION_START, [""]), 10);
    const read = (i: number) => client.ask(xs.XS_READ, [`data/${i}`], id);
    for (let i = 0; i < 10; i++) expect(await read(i)).toBe("ENOENT");
    for (let i = 10; i < 20; i++) expect(await read(i)).toBe("ENOSPC");
    // Were the refused ones counted, there would be too many now for those that were admitted too.
    for (let i = 0; i < 10; i++) expect(await read(i)).toBe("ENOENT");
    fixture.close();
  },
);
