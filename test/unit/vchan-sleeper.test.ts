// How an end of a vchan waits: what ends a sleep and a look, and when the port is unmasked.
import { expect, test } from "bun:test";
import { closeSync } from "node:fs";
import { shim } from "../../src/native/shim.ts";
import { READ, WRITTEN, type VchanEndpoint } from "../../src/vchan/endpoint.ts";
import { VchanPair } from "./vchan-pair.ts";

const BYTE = new Uint8Array(1);

/** Takes every event and all news, until waiting finds nothing any more. */
function settle(end: VchanEndpoint): void {
  do end.sample();
  while (end.wait(WRITTEN, 0));
}

/** Has `end` sleep for a short time, after which it looks before it sleeps. */
function sleepBriefly(end: VchanEndpoint, peer: VchanEndpoint): void {
  settle(end);
  peer.write(BYTE);
  const before = end.counts.eventsReceived;
  end.sample();
  expect(end.wait(WRITTEN, 1000)).toBe(true);
  expect(end.counts.eventsReceived).toBe(before + 1);
}

test("a wait for which nothing comes ends when its time is up", () => {
  using pair = new VchanPair({ looks: true });
  settle(pair.server);
  for (const wants of [0, WRITTEN, READ, WRITTEN | READ]) expect(pair.server.wait(wants, 3)).toBe(false);
  sleepBriefly(pair.server, pair.client);
  expect(pair.server.wait(WRITTEN, 3)).toBe(false);
});

test("news end a wait before it asks for an event", () => {
  using pair = new VchanPair({ looks: true });
  const { server, client } = pair;
  sleepBriefly(server, client);
  const { eventsReceived } = server.counts;
  const { eventsSent } = client.counts;
  client.write(BYTE);
  expect(server.wait(WRITTEN, -1)).toBe(true);
  server.sample();
  client.write(BYTE);
  expect([server.counts.eventsReceived, client.counts.eventsSent]).toEqual([eventsReceived, eventsSent]);
});

test("a descriptor that is watched ends a sleep, and a look, too", () => {
  using pair = new VchanPair({ looks: true });
  const { server, client } = pair;
  const fd = shim.xt_eventfd();
  let calls = 0;
  const watch = server.reactor.watch(fd, () => {
    calls++;
    shim.xt_eventfd_drain(fd);
  });
  settle(server);
  shim.xt_eventfd_signal(fd);
  expect([server.wait(WRITTEN, -1), calls]).toEqual([true, 1]);
  sleepBriefly(server, client);
  shim.xt_eventfd_signal(fd);
  expect([server.wait(WRITTEN, -1), calls]).toEqual([true, 2]);
  server.reactor.unwatch(watch);
  closeSync(fd);
});

test("the port of an event stays masked until the next sleep", () => {
  using pair = new VchanPair({ looks: true });
  const { server, client } = pair;
  const isMasked = (): boolean | undefined => pair.host.ports.get(server.port)?.masked;
  sleepBriefly(server, client);
  expect(isMasked()).toBe(true);
  client.write(BYTE);
  expect([server.wait(WRITTEN, -1), isMasked()]).toEqual([true, true]);
  server.sample();
  expect([server.wait(WRITTEN, 0), isMasked()]).toEqual([false, false]);
});
