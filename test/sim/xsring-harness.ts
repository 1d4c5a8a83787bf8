// Rings of a simulated host in the test's process: the C programs that use them, a raw client in a guest, and
// `xentool xsring` as people start it.
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { toDomid } from "../../src/core/types.ts";
import type { EvtchnPort } from "../../src/core/types.ts";
import type { Mapping } from "../../src/native/memory.ts";
import { PortStream } from "../../src/platform/port-stream.ts";
import type { NativeEventChannels } from "../../src/platform/adapter.ts";
import type { SimPlatform } from "../../src/platform/sim.ts";
import { loadRingWord, storeRingWord, XsRingStream } from "../../src/protocol/xs-ring.ts";
import { XsPacketParser, type XsPacket } from "../../src/protocol/xs-wire.ts";
import type { SimHost } from "../../src/sim/host.ts";
import type { StoreRing } from "../../src/platform/platform.ts";
import { run, type Finished } from "../support/process.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

/** Builds a C program where that is needed, and gives its path. Those of test/programs have a folder of their own. */
export function testProgram(name: string, folder = "programs"): string {
  const build = Bun.spawnSync(
    ["sh", "-c", `cmake -S . -B build/shim && cmake --build build/shim --target ${name}`],
    { cwd: ROOT, stdout: "pipe", stderr: "pipe" },
  );
  if (build.exitCode !== 0) throw new Error(`cannot build ${name}: ${build.stderr.toString()}`);
  return join(ROOT, "build/shim", folder, name);
}

/** `xentool xsring …` as a process of domain 0 (or another) of `host`. */
export function xsring(host: SimHost, args: readonly string[], domid = 0): Promise<Finished> {
  return run([process.execPath, "cmd/xentool.ts", "xsring", ...args], {
    cwd: ROOT,
    env: { ...process.env, XENTOOL_SIM: host.dir, XENTOOL_DOMID: String(domid) },
  });
}

/** A command that runs, whose lines can be waited for. */
export interface RunningCommand {
  /** Resolves once a line of its output matches. */
  line(pattern: RegExp): Promise<void>;
  readonly finished: Promise<Finished>;
  /** As Ctrl-C. */
  interrupt(): void;
}

/** As `xsring`, without waiting for its end. */
export function startXsring(host: SimHost, args: readonly string[]): RunningCommand {
  const child = Bun.spawn([process.execPath, "cmd/xentool.ts", "xsring", ...args], {
    cwd: ROOT,
    env: { ...process.env, XENTOOL_SIM: host.dir, XENTOOL_DOMID: "0" },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stdout = "";
  let notice = (): void => {};
  const reading = (async () => {
    const decoder = new TextDecoder();
    for await (const bytes of child.stdout) {
      stdout += decoder.decode(bytes, { stream: true });
      notice();
    }
    notice();
  })();
  const stderr = new Response(child.stderr).text();
  const finished = Promise.all([child.exited, stderr, reading]).then(([status, words]) => ({
    status,
    stdout,
    stderr: words,
  }));
  const line = async (pattern: RegExp): Promise<void> => {
    while (!pattern.test(stdout)) {
      const { promise, resolve } = Promise.withResolvers<void>();
      notice = resolve;
      if (child.exitCode !== null) throw new Error(`ended before ${pattern}: ${await stderr}`);
      await promise;
    }
  };
  return { line, finished, interrupt: () => child.kill("SIGINT") };
}

/** A guest's end of its ring, with the packets as they come. */
export class GuestRing {
  readonly platform: SimPlatform;
  readonly page: Mapping;
  readonly #channels: NativeEventChannels;
  readonly #port: EvtchnPort;
  readonly #stream: PortStream;
  readonly #listeners = new Set<() => void>();
  readonly #parser = new XsPacketParser();

  constructor(host: SimHost, domid: number) {
    this.platform = host.platform(toDomid(domid));
    this.#channels = this.platform.openEventChannels();
    const { page, port } = this.platform.openStoreRing(this.#channels);
    this.page = page;
    this.#port = port;
    this.#stream = new PortStream(this.#channels, () => {
      for (const listener of this.#listeners) listener();
    });
  }

  load(offset: number): number {
    return loadRingWord(this.page, offset);
  }

  store(offset: number, value: number): void {
    storeRingWord(this.page, offset, value);
  }

  notify(): void {
    this.#channels.notify(this.#port);
  }

  /** Puts bytes into the ring, all of them, and tells the server. */
  async send(bytes: Uint8Array): Promise<void> {
    const requests = XsRingStream.requests(this.page);
    for (let at = 0; at < bytes.length;) {
      const count = requests.write(bytes.subarray(at)) ?? 0;
      this.notify();
      at += count;
      if (count === 0) await this.event();
    }
  }

  /** The next packet from the server. */
  async receive(): Promise<XsPacket> {
    const responses = XsRingStream.responses(this.page);
    for (;;) {
      const packet = this.#parser.next();
      if (packet !== undefined) return packet;
      const bytes = responses.read();
      if (bytes === undefined) throw new Error("the response indices are impossible");
      if (bytes.length === 0) await this.event();
      else {
        this.#parser.push(bytes);
        this.notify();
      }
    }
  }

  /** Bytes that were taken and are no whole packet. */
  get leftoverBytes(): number {
    return this.#parser.bufferedBytes;
  }

  /** The ring began anew: what was taken of the old one is void. */
  forget(): void {
    this.#parser.reset();
  }

  /** Resolves at the next event. */
  event(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const listener = (): void => {
      this.#listeners.delete(listener);
      resolve();
    };
    this.#listeners.add(listener);
    return promise;
  }

  /** For the real client. */
  client(): StoreRing {
    return {
      page: this.page,
      events: this.#channels,
      port: this.#port,
      onEvent: (wake) => {
        this.#listeners.add(wake);
        return () => this.#listeners.delete(wake);
      },
    };
  }

  async close(): Promise<void> {
    await this.#stream.close();
    this.page.close();
    this.#channels.close();
    this.platform.close();
  }
}
