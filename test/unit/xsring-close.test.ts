// Closing a ring while xenstored is silent, as one that is stopped or stuck: the close ends in time or at Ctrl-C, and
// leaves no wish behind that would be fulfilled when nobody expects it any more.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { kindOf } from "../../src/core/errors.ts";
import { toDomid } from "../../src/core/types.ts";
import type { Platform } from "../../src/platform/platform.ts";
import * as layout from "../../src/protocol/xs-ring.ts";
import * as xs from "../../src/protocol/xs-wire.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import type { XenstoreTransport } from "../../src/xenstore/transport.ts";
import { closeRing, type CloseOptions, type RingToClose } from "../../src/xsring/close.ts";
import type { CloseMethod } from "../../src/xsring/close-plan.ts";
import { run } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

/** A xenstored that answers everything up to the first request of a certain type. */
class FallsSilent implements XenstoreTransport {
  readonly name = "a silent xenstored";
  readonly payloadBytesMax = xs.XS_PAYLOAD_MAX;
  onData: (bytes: Uint8Array) => void = () => {};
  onClose: XenstoreTransport["onClose"] = () => {};
  readonly asked: number[] = [];

  constructor(readonly type: number) {}

  write(packet: Uint8Array): void {
    const parser = new xs.XsPacketParser();
    parser.push(packet);
    const { type, reqId, txId } = parser.next() as xs.XsPacket;
    this.asked.push(type);
    if (this.asked.includes(this.type)) return;
    const reply =
      { [xs.XS_READ]: "1", [xs.XS_IS_DOMAIN_INTRODUCED]: "T\0", [xs.XS_CONTROL]: "check\0" }[type] ?? "OK\0";
    queueMicrotask(() => this.onData(xs.encodePacket(type, reqId, txId, xs.encodeText(reply))));
  }

  close(): void {}
}

let page: layout.XsRingPage;
let xenstore: Xenstore;
let stop: AbortController;

function newPage(): void {
  const buffer = new ArrayBuffer(4096);
  page = { bytes: new Uint8Array(buffer), words: new Uint32Array(buffer) };
  stop = new AbortController();
}

/** The kind of failure of a close during which xenstored falls silent at a request of `type`. */
async function close(
  method: CloseMethod,
  type: number,
  options: Partial<CloseOptions> = {},
): Promise<string> {
  xenstore = new Xenstore(new FallsSilent(type));
  const ring: RingToClose = {
    domid: toDomid(5),
    page,
    notify: undefined,
    toolstack: { platform: { name: "sim" } as Platform, xenstore },
  };
  const plan = { method, destructive: false, steps: [], risks: [] };
  const all = { timeoutMs: 50, signal: stop.signal, kickPath: undefined, ...options };
  return closeRing(plan, ring, all).then(() => "no failure", kindOf);
}

describe("when xenstored falls silent", () => {
  beforeEach(newPage);
  afterEach(() => {
    expect(layout.loadRingWord(page, layout.XS_RING_CONNECTION)).toBe(layout.XENSTORE_CONNECTED);
    xenstore.close();
  });

  test.each([
    ["handshake", "TRANSACTION_START", xs.XS_TRANSACTION_START],
    ["reintroduce", "READ", xs.XS_READ],
    ["reintroduce", "CONTROL", xs.XS_CONTROL],
    ["reintroduce", "INTRODUCE", xs.XS_INTRODUCE],
    ["release", "READ", xs.XS_READ],
    ["release", "RELEASE", xs.XS_RELEASE],
    ["release", "INTRODUCE", xs.XS_INTRODUCE],
  ] as const)("a %s ends in time: at %s", async (method, _name, type) => {
    expect(await close(method, type)).toBe("timeout");
  });

  test.each([
    ["handshake", xs.XS_TRANSACTION_START],
    ["reintroduce", xs.XS_INTRODUCE],
  ] as const)("a %s ends at Ctrl-C", async (method, type) => {
    setTimeout(() => stop.abort(), 20);
    expect(await close(method, type, { timeoutMs: 60_000 })).toBe("cancelled");
  });
});

test("a terminal's Ctrl-C, which goes to our whole process group, does not end the xl that lets the guest go on", async () => {
  const dir = temporaryDirectory();
  const log = join(dir, "log");
  const note = (words: string): string =>
    `read -r pid name state parent group rest </proc/$$/stat; echo "${words} $group" >>${log}`;
  writeFileSync(join(dir, "xl"), `#!/bin/sh\n${note("$*")}\n`, { mode: 0o755 });
  const module = fileURLToPath(new URL("../../src/xsring/guest-pause.ts", import.meta.url));
  const ours = `const { pauseGuest } = await import(${JSON.stringify(module)});
    await (await pauseGuest({ name: "xen" }, 5)).resume();`;
  const command = ["sh", "-c", `${note("ours")}; "$0" -e "$1"`, process.execPath, ours];
  const { status } = await run(command, { env: { ...process.env, PATH: `${dir}:${process.env["PATH"]}` } });
  expect(status).toBe(0);
  const groups = new Map(
    readFileSync(log, "utf8")
      .trim()
      .split("\n")
      .map((line) => [line.replace(/ [0-9]+$/, ""), line.split(" ").at(-1)]),
  );
  expect([...groups.keys()]).toEqual(["ours", "pause 5", "unpause 5"]);
  for (const call of ["pause 5", "unpause 5"]) expect(groups.get(call)).not.toBe(groups.get("ours"));
  removeDirectory(dir);
});
