// `xentool selftest vchan`: bytes go through a vchan to an echo and come back, first as questions and answers, then as
// a stream. On Xen the echo runs in another domain, because a vchan of a domain to itself can crash a Linux kernel.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { endsWithin, pause } from "../core/deadline.ts";
import { XentoolError } from "../core/errors.ts";
import { toDomid } from "../core/types.ts";
import { chooseOrders } from "../protocol/vchan.ts";
import { connectAndRelay, listenAndRelay, type RelaySessionOptions } from "../vchan/relay-session.ts";
import { vchanPlace } from "../vchan/rendezvous.ts";
import { expect, type Ground, type OnPassed } from "./check.ts";

/** The name of the vchan, for the echo in the other domain. */
const ECHO_NAME = "xentool-selftest";

const QUESTIONS = 500;
const STREAM_BYTES = 8 << 20;
const CHUNK_BYTES = 64 << 10;
const LOOK_AGAIN_MS = 10;

export async function checkVchan(ground: Ground, passed: OnPassed): Promise<void> {
  const { platform, peer } = ground;
  if (peer !== undefined) return checkEcho(ground, passed, `domain ${peer}`);
  if (platform.name === "xen")
    throw new XentoolError(
      "usage",
      `on Xen this needs a second domain: run \`xentool vchan listen ${platform.domid} ${ECHO_NAME} -- cat\` there, and name it with --peer`,
    );
  for (const ringBytes of [1024, 65_536]) {
    const ended = new AbortController();
    const echo = serveEcho(ground, ringBytes, AbortSignal.any([ended.signal, ground.stop]));
    try {
      await Promise.race([checkEcho(ground, passed, `rings of ${ringBytes >> 10} KiB`), endsEarly(echo)]);
    } finally {
      ended.abort();
      await echo.catch(() => {});
    }
  }
}

/** The echo may end before the client does only by failing. */
async function endsEarly(echo: Promise<number>): Promise<void> {
  await echo;
  await new Promise(() => {});
}

async function serveEcho(ground: Ground, ringBytes: number, signal: AbortSignal): Promise<number> {
  const orders = chooseOrders(ringBytes, ringBytes);
  if (orders === undefined) throw new XentoolError("bug", `no vchan has rings of ${ringBytes} bytes`);
  return listenAndRelay({ ...optionsOf(ground, signal), local: { kind: "command", argv: ["cat"] } }, orders);
}

function optionsOf(ground: Ground, signal: AbortSignal): Omit<RelaySessionOptions, "local"> {
  const { platform, spawnWorker, peer } = ground;
  const server = peer === undefined ? platform.domid : toDomid(peer, "--peer");
  const place = vchanPlace(ECHO_NAME, server, platform.domid);
  return { platform, place, spawnWorker, signal, keep: false, sendOnly: false };
}

async function checkEcho(ground: Ground, passed: OnPassed, where: string): Promise<void> {
  const path = join(ground.directory, "vchan");
  const local = { kind: "unix", path } as const;
  const relayed = connectAndRelay({ ...optionsOf(ground, ground.stop), local }, true);
  const talked = (async () => {
    while (!existsSync(path)) await pause(LOOK_AGAIN_MS, ground.stop);
    await talk(path, ground.stop);
  })();
  await Promise.all([relayed, talked]);
  passed(
    `${where}: ${QUESTIONS} answers, then ${STREAM_BYTES >> 20} MiB there and back, every byte as it was`,
  );
}

/** Both sides of one connection to the relay, with what came back. */
async function talk(path: string, stop: AbortSignal): Promise<void> {
  const echo = await Echo.connect(path);
  try {
    if (!(await endsWithin(undefined, ask(echo), stop)))
      throw new XentoolError("timeout", "the vchan did not bring back every byte in time");
  } finally {
    echo.close();
  }
}

async function ask(echo: Echo): Promise<void> {
  let at = 0;
  for (let question = 0; question < QUESTIONS; question++) {
    const bytes = 1 + (question % 100);
    echo.send(at, bytes);
    at += bytes;
    await echo.received(at);
  }
  for (const end = at + STREAM_BYTES; at < end; at += CHUNK_BYTES) {
    echo.send(at, CHUNK_BYTES);
    await echo.room();
  }
  await echo.received(at);
  expect(echo.wrongAt === undefined, `byte ${echo.wrongAt} came back changed`);
}

/** The byte at `offset` of what is sent: no power of two is a period of it. */
function byteAt(offset: number): number {
  return (Math.imul(offset, 0x9e37_79b9) >>> 24) ^ (offset % 251);
}

class Echo {
  #socket: Bun.Socket | undefined;
  #output = Buffer.alloc(0);
  #came = 0;
  #changed = Promise.withResolvers<void>();
  #ended = false;
  wrongAt: number | undefined;

  static async connect(path: string): Promise<Echo> {
    const echo = new Echo();
    echo.#socket = await Bun.connect({
      unix: path,
      socket: {
        data: (_socket, bytes) => echo.#take(bytes),
        drain: () => echo.#push(),
        close: () => {
          echo.#ended = true;
          echo.#changed.resolve();
        },
      },
    });
    return echo;
  }

  send(offset: number, count: number): void {
    const bytes = Uint8Array.from({ length: count }, (_, index) => byteAt(offset + index));
    this.#output = Buffer.concat([this.#output, bytes]);
    this.#push();
  }

  /** Waits until everything was handed to the socket. */
  async room(): Promise<void> {
    await this.#until(() => this.#output.length === 0);
  }

  /** Waits until `count` bytes have come back. */
  async received(count: number): Promise<void> {
    await this.#until(() => this.#came >= count);
  }

  close(): void {
    this.#socket?.end();
  }

  async #until(holds: () => boolean): Promise<void> {
    while (!holds()) {
      if (this.#ended) throw new XentoolError("io", "the vchan ended before every byte had come back");
      await this.#changed.promise;
      this.#changed = Promise.withResolvers<void>();
    }
  }

  #push(): void {
    const written = this.#socket?.write(this.#output) ?? 0;
    this.#output = this.#output.subarray(Math.max(0, written));
    this.#changed.resolve();
  }

  #take(bytes: Uint8Array): void {
    for (const byte of bytes) {
      if (byte !== byteAt(this.#came)) this.wrongAt ??= this.#came;
      this.#came++;
    }
    this.#changed.resolve();
  }
}
