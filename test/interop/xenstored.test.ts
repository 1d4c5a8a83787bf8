// The xenstore suite against Xen's own servers, xenstored and oxenstored, over domain 0's ring: they judge our ring
// client, which takes the ring over from the test before, and find other clients at their socket.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { globSync } from "node:fs";
import { Xenstore } from "../../src/xenstore/client.ts";
import { xenstoreSuite, type XenstoreTestSetup } from "../conformance/xenstore-suite.ts";
import { XenstoredHost } from "./xenstored-host.ts";

const program = (name: string): string => globSync(`/usr/lib/xen-*/bin/${name}`).sort().at(-1) ?? name;

const SERVERS = [
  {
    name: "xenstored",
    command: [program("xenstored"), "-N", "--pid-file", "/var/run/pid"],
    largeDirectories: true,
  },
  { name: "oxenstored", command: [program("oxenstored"), "--no-fork"], largeDirectories: false },
] as const;

describe.each(SERVERS)("$name", ({ name, command, largeDirectories }) => {
  let host: XenstoredHost;
  beforeAll(async () => {
    host = await XenstoredHost.start(command);
  });
  afterAll(() => host.close());

  async function open(): Promise<XenstoreTestSetup> {
    const clients: Xenstore[] = [];
    return {
      directory: "/test",
      async connect() {
        const client = await Xenstore.connect(clients.length === 0 ? host.ring : host.socket);
        clients.push(client);
        return client;
      },
      async close() {
        const idle = { pendingRequests: 0, watches: 0 };
        await Promise.all(clients.map((client) => client.getDomainPath(0)));
        for (const client of clients) expect(client.statistics).toEqual(idle);
        for (const client of clients) client.close();
      },
    };
  }

  xenstoreSuite(`${name}, domain 0's ring`, open, { largeDirectories });

  test("connections that come while it is busy wait, though it lets only one of them queue", async () => {
    host.server.kill("SIGSTOP");
    const connecting = Promise.all(Array.from({ length: 6 }, () => Xenstore.connect(host.socket)));
    await Promise.race([connecting, Bun.sleep(100)]); // it goes on only after they have all tried
    host.server.kill("SIGCONT");
    for (const client of await connecting) client.close();
  });

  test("killed, it leaves nothing", async () => {
    expect(host.server.exitCode).toBe(null);
    host.server.kill("SIGKILL");
    expect(await host.server.exited).toBe(137);
  });
});
