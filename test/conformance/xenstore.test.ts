// The xenstore suite against the embedded server: every personality, over a socket and within the process.
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { expect } from "bun:test";
import { Xenstore } from "../../src/xenstore/client.ts";
import {
  PERSONALITIES,
  PERSONALITY_NAMES,
  type PersonalityName,
} from "../../src/xenstore/server/personality.ts";
import { XenstoreServer } from "../../src/xenstore/server/server.ts";
import { xenstoreSuite, type XenstoreTestSetup } from "./xenstore-suite.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

async function open(personality: PersonalityName, overSocket: boolean): Promise<XenstoreTestSetup> {
  const dir = temporaryDirectory();
  const path = join(dir, "socket");
  const server = new XenstoreServer({ personality });
  await server.listen(path, 0);
  const before = server.statistics;
  const clients: Xenstore[] = [];
  return {
    directory: "/test",
    async connect() {
      const client = overSocket
        ? await Xenstore.connect({ kind: "socket", path })
        : new Xenstore(server.connectDirectly(0));
      clients.push(client);
      return client;
    },
    async close() {
      const idle = { pendingRequests: 0, watches: 0 };
      await Promise.all(clients.map((client) => client.getDomainPath(0)));
      for (const client of clients) expect(client.statistics).toEqual(idle);
      for (const client of clients) client.close();
      while (server.statistics.connections > 0) await new Promise(setImmediate);
      expect(server.statistics).toEqual(before);
      server.close();
      expect(readdirSync(dir)).toEqual([]);
      removeDirectory(dir);
    },
  };
}

for (const personality of PERSONALITY_NAMES) {
  const limits = { largeDirectories: PERSONALITIES[personality].oversizeReply === "E2BIG" };
  xenstoreSuite(`${personality}, socket`, () => open(personality, true), limits);
  xenstoreSuite(`${personality}, in process`, () => open(personality, false), limits);
}
