// Which platform a command gets, from its options and environment; and a host that is told nonsense.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { join } from "node:path";
import { XentoolError } from "../../src/core/errors.ts";
import { toDomid } from "../../src/core/types.ts";
import { choosePlatform, openPlatform, type PlatformOptions } from "../../src/platform/open.ts";
import { SimHost } from "../../src/sim/host.ts";
import { mapGrants } from "./platform-harness.ts";

let host: SimHost;
beforeEach(async () => {
  host = await SimHost.start({ domains: 2 });
});
afterEach(async () => {
  const leaks = await host.settle();
  await host.stop();
  expect(leaks).toEqual([]);
});

async function failure(options: PlatformOptions): Promise<XentoolError> {
  const outcome = await choosePlatform(options).catch((error: unknown) => error);
  expect(outcome).toBeInstanceOf(XentoolError);
  return outcome as XentoolError;
}

test("XENTOOL_SIM names a host, XENTOOL_DOMID who we are there", async () => {
  for (const [env, domid] of [
    [{ XENTOOL_SIM: host.dir }, 0],
    [{ XENTOOL_SIM: host.dir, XENTOOL_DOMID: "" }, 0],
    [{ XENTOOL_SIM: host.dir, XENTOOL_DOMID: "1" }, 1],
  ] as const) {
    const platform = await choosePlatform({ env });
    expect(platform.name).toBe("sim");
    expect(platform.domid).toBe(toDomid(domid));
    expect(platform.descriptor).toEqual({ name: "sim", dir: host.dir, domid: toDomid(domid) });
    platform.close();
  }
});

test("a descriptor opens the same platform in a worker, at once", async () => {
  const source = `
    import { openPlatform } from ${JSON.stringify(join(import.meta.dir, "../../src/platform/open.ts"))};
    self.onmessage = ({ data }) => {
      const platform = openPlatform(data);
      const share = platform.openGrantShare();
      const { mapping, refs } = share.share(0, 1, "rw");
      mapping.bytes[0] = 42;
      self.onmessage = () => { mapping.close(); share.close(); platform.close(); postMessage("closed"); };
      postMessage(refs[0]);
    };`;
  const url = URL.createObjectURL(new Blob([source], { type: "application/typescript" }));
  const worker = new Worker(url);
  const next = (): Promise<unknown> =>
    new Promise((resolve) => worker.addEventListener("message", ({ data }) => resolve(data), { once: true }));
  const front = host.platform(1);
  worker.postMessage(front.descriptor);
  const ref = (await next()) as number;
  const back = openPlatform({ name: "sim", dir: host.dir, domid: toDomid(0) });
  const mapping = mapGrants(back, toDomid(1), [ref], "rw");
  expect(mapping.bytes[0]).toBe(42);
  mapping.close();
  worker.postMessage("close");
  expect(await next()).toBe("closed");
  worker.terminate();
  URL.revokeObjectURL(url);
  for (const each of [front, back]) each.close();
});

test("what cannot be opened is said, with what to do", async () => {
  const sim = await failure({ platform: "sim", env: {} });
  expect([sim.kind, sim.message]).toEqual(["environment", expect.stringContaining("xentool sim run")]);
  const gone = await failure({ env: { XENTOOL_SIM: "/nonexistent" } });
  expect([gone.kind, gone.message]).toEqual(["environment", expect.stringContaining("xentool sim start")]);
  const nobody = await failure({ env: { XENTOOL_SIM: host.dir, XENTOOL_DOMID: "7" } });
  expect([nobody.kind, nobody.message]).toEqual(["environment", expect.stringContaining("no domain 7")]);
  for (const text of ["-1", "x", "99999", "1.5"])
    expect((await failure({ env: { XENTOOL_SIM: host.dir, XENTOOL_DOMID: text } })).kind).toBe("usage");
});

test("garbage on the control socket ends that connection and nothing else", async () => {
  const lines = [
    "not json\n",
    "null\n",
    '{"op":"destroyDomain"}\n',
    '{"op":"attach","slot":-1,"generation":1e300}\n',
    '{"op":"attach","slot":100000,"generation":1}\n',
    '{"op":"createDomain","domid":-5}\n',
    "x".repeat(100_000),
  ];
  for (const line of lines) {
    const { promise, resolve } = Promise.withResolvers<void>();
    const socket = await Bun.connect({
      unix: join(host.dir, "host.sock"),
      socket: { data: (self) => void self.end(), close: () => resolve() },
    });
    socket.write(line);
    if (line.includes("attach")) socket.end();
    await promise;
  }
  expect(host.status().domains.map(({ domid }) => domid)).toEqual([0, 1]);
});
