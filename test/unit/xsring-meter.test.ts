// What a ring's meter makes of a ring that a test moves by hand, at times that the test chooses.
import { beforeEach, expect, test } from "bun:test";
import { XsRingStream } from "../../src/protocol/xs-ring.ts";
import { encodePacket, encodeText, XS_READ, XS_WATCH_EVENT, XS_WRITE } from "../../src/protocol/xs-wire.ts";
import { RingMeter } from "../../src/xsring/ring-meter.ts";
import { TestRing } from "./xenstore-ring-page.ts";

let ring: TestRing;
let requests: XsRingStream;
let responses: XsRingStream;
let meter: RingMeter;
let id = 0;

beforeEach(() => {
  ring = new TestRing();
  requests = XsRingStream.requests(ring.page);
  responses = XsRingStream.responses(ring.page);
  meter = new RingMeter(ring.page, 0);
});

/** A request, taken and answered at once. Both packets' bytes. */
function exchange(type: number, path = "name"): number {
  const request = encodePacket(type, ++id, 0, encodeText(`${path}\0`));
  const reply = encodePacket(type, id, 0, encodeText("domain"));
  requests.write(request);
  requests.skip();
  responses.write(reply);
  responses.skip();
  return request.length + reply.length;
}

test("an idle ring has done nothing", () => {
  expect(meter.take(1000)).toEqual({
    requests: 0,
    bytes: 0,
    isEstimate: false,
    mostly: null,
    verdict: "healthy",
    waitsMs: 0,
  });
});

test("requests and bytes a second, and what most of them were", () => {
  let bytes = 0;
  for (let i = 0; i < 60; i++) {
    bytes += exchange(i % 4 === 0 ? XS_WRITE : XS_READ);
    meter.look(i);
  }
  const activity = meter.take(2000);
  expect(activity).toMatchObject({ requests: 30, bytes: bytes / 2, isEstimate: false });
  expect(activity.mostly).toEqual({ type: "READ", share: 0.75 });
  expect(meter.take(3000)).toMatchObject({ requests: 0, bytes: 0, mostly: null });
});

test("watch events are bytes, but no requests", () => {
  const event = encodePacket(XS_WATCH_EVENT, 0, 0, encodeText("a\0b\0"));
  responses.write(event);
  responses.skip();
  expect(meter.take(1000)).toMatchObject({ requests: 0, bytes: event.length });
});

test("what was overwritten between two looks is estimated from the size of what was seen", () => {
  exchange(XS_READ);
  meter.look(1);
  let bytes = 0;
  for (let i = 0; i < 1000; i++) bytes += exchange(XS_READ);
  const activity = meter.take(1000);
  expect(activity.isEstimate).toBe(true);
  expect(activity.requests).toBeWithin(990, 1012);
  expect(activity.bytes).toBeGreaterThanOrEqual(bytes);
});

test("a side that waits is named once the ring has stood still", () => {
  const request = encodePacket(XS_READ, ++id, 0, encodeText("name\0"));
  requests.write(request);
  meter.look(1000);
  expect(meter.take(1100)).toMatchObject({ verdict: "healthy", waitsMs: 0 });
  expect(meter.take(1500)).toMatchObject({ verdict: "guest-waits", waitsMs: 500 });
  expect(meter.take(9000)).toMatchObject({ verdict: "guest-waits", waitsMs: 8000 });
  requests.skip();
  responses.write(encodePacket(XS_READ, id, 0, encodeText("x")));
  meter.look(9100);
  expect(meter.take(9500)).toMatchObject({ verdict: "server-waits", waitsMs: 400 });
  responses.skip();
  meter.look(9600);
  expect(meter.take(10_500)).toMatchObject({ verdict: "healthy", waitsMs: 0 });
});

test("a ring that starts anew goes on being measured", () => {
  for (let i = 0; i < 10; i++) exchange(XS_READ);
  meter.take(1000);
  requests.reset();
  responses.reset();
  meter.look(1100);
  const bytes = exchange(XS_READ);
  expect(meter.take(2000)).toMatchObject({ requests: 1 / 1, bytes });
});

test("indices that lie are shown as that, and cost nothing", () => {
  ring.page.words[2052 >> 2] = 0x7fff_0000;
  const lying = meter.take(1000);
  expect(lying.verdict).toBe("corrupt");
  ring.page.words[2052 >> 2] = 5;
  expect(meter.take(2000).bytes).toBeLessThan(2 ** 21);
  expect(meter.take(3000).verdict).toBe("guest-waits");
});
