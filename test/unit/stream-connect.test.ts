// Connections to other hosts.
import { expect, test } from "bun:test";
import { closeSync, readFileSync } from "node:fs";
import { check, shim } from "../../src/native/shim.ts";

/** What Linux calls the timer that asks a silent peer whether it is there. */
const KEEP_ALIVE = "02";

test("a peer that vanishes while nothing is sent is noticed", async () => {
  const connected = Promise.withResolvers<void>();
  const listener = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: { open: () => connected.resolve(), data() {} },
  });
  const fd = check(shim.xt_stream_connect(Buffer.from("127.0.0.1\0"), listener.port), "connect");
  await connected.promise;
  // sl, local address, remote address, state, queues, timer:when
  const to = `0100007F:${listener.port.toString(16).toUpperCase().padStart(4, "0")}`;
  const lines = readFileSync("/proc/net/tcp", "utf8").split("\n");
  const ours = lines.map((line) => line.trim().split(/\s+/)).find((fields) => fields[2] === to);
  expect(ours?.[5]?.split(":")[0]).toBe(KEEP_ALIVE);
  closeSync(fd);
  listener.stop(true);
});
