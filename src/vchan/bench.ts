// A benchmark of a vchan with xentool at both ends: the connecting end requests a job, and the listening end plays
// its part. A job is 16 bytes: a magic number, its kind, and the number of bytes or rounds as a double.
import { XentoolError } from "../core/errors.ts";
import { BENCH_AMOUNT_MAX, BENCH_CHUNK_BYTES } from "./bounds.ts";
import type { VchanControl } from "./vchan-control.ts";
import { READ, WRITTEN, type VchanEndpoint } from "./endpoint.ts";

export const BENCH_KINDS = ["send", "receive", "both", "round-trip"] as const;
export type BenchKind = (typeof BENCH_KINDS)[number];

export interface BenchJob {
  readonly kind: BenchKind;
  /** Bytes each way, or the number of round trips. */
  readonly amount: number;
}

export interface BenchMeasure extends BenchJob {
  readonly seconds: number;
  /** CPU time of this process, user and kernel. */
  readonly cpuSeconds: number;
  readonly eventsSent: number;
  readonly eventsReceived: number;
}

const MAGIC = 0x6278_6378;
const JOB_BYTES = 16;

/**
 * Has the peer do its part of `job`, and measures until the last byte has arrived. Fails with `timeout` when the peer
 * does nothing for `timeoutMs`.
 */
export function runBenchJob(
  endpoint: VchanEndpoint,
  control: VchanControl,
  job: BenchJob,
  timeoutMs = Infinity,
): BenchMeasure {
  using pump = new BenchPump(endpoint, control, timeoutMs);
  const { eventsSent, eventsReceived } = endpoint.counts;
  const cpuBefore = process.cpuUsage();
  const started = performance.now();
  pump.exchange(encodeJob(job), new Uint8Array(0));
  if (job.kind === "round-trip") pump.bounce(job.amount, true);
  else {
    pump.stream(job.kind === "receive" ? 0 : job.amount, job.kind === "send" ? 0 : job.amount);
    pump.exchange(new Uint8Array(0), new Uint8Array(1));
  }
  const seconds = (performance.now() - started) / 1000;
  const cpu = process.cpuUsage(cpuBefore);
  return {
    ...job,
    seconds,
    cpuSeconds: (cpu.user + cpu.system) / 1e6,
    eventsSent: endpoint.counts.eventsSent - eventsSent,
    eventsReceived: endpoint.counts.eventsReceived - eventsReceived,
  };
}

/** Does the jobs that the peer requests until it closes. Returns the number of jobs. */
export function serveBenchJobs(endpoint: VchanEndpoint, control: VchanControl): number {
  using pump = new BenchPump(endpoint, control);
  const bytes = new Uint8Array(JOB_BYTES);
  for (let served = 0; ; served++) {
    if (!pump.expectJob(bytes)) return served;
    const job = decodeJob(bytes);
    if (job.kind === "round-trip") pump.bounce(job.amount, false);
    else {
      pump.stream(job.kind === "send" ? 0 : job.amount, job.kind === "receive" ? 0 : job.amount);
      pump.exchange(new Uint8Array(1), new Uint8Array(0));
    }
  }
}

class BenchPump {
  readonly #endpoint: VchanEndpoint;
  readonly #control: VchanControl;
  readonly #timeoutMs: number;
  readonly #out = new Uint8Array(BENCH_CHUNK_BYTES).fill(0x78);
  readonly #in = new Uint8Array(BENCH_CHUNK_BYTES);
  readonly #byte = new Uint8Array(1);
  readonly #waking: Disposable;

  constructor(endpoint: VchanEndpoint, control: VchanControl, timeoutMs = Infinity) {
    this.#endpoint = endpoint;
    this.#control = control;
    this.#timeoutMs = timeoutMs;
    this.#waking = control.wakes(endpoint.reactor);
  }

  [Symbol.dispose](): void {
    this.#waking[Symbol.dispose]();
  }

  /** Writes all of `out` and fills `into`. */
  exchange(out: Uint8Array, into: Uint8Array): void {
    const endpoint = this.#endpoint;
    for (let sent = 0, got = 0; sent < out.length || got < into.length;) {
      const written = sent < out.length ? endpoint.write(out.subarray(sent)) : 0;
      const read = got < into.length ? endpoint.read(into.subarray(got)) : 0;
      sent += written;
      got += read;
      if (written === 0 && read === 0) this.#wait(sent < out.length, got < into.length);
    }
  }

  /** Writes and reads this many bytes at the same time; their contents do not matter. */
  stream(writeBytes: number, readBytes: number): void {
    const endpoint = this.#endpoint;
    const writeChunk = this.#chunk(this.#out, endpoint.writeSize);
    const readChunk = this.#chunk(this.#in, endpoint.readSize);
    let toWrite = writeBytes;
    let toRead = readBytes;
    while (toWrite > 0 || toRead > 0) {
      const written = toWrite > 0 ? endpoint.write(upTo(writeChunk, toWrite)) : 0;
      const read = toRead > 0 ? endpoint.read(upTo(readChunk, toRead)) : 0;
      toWrite -= written;
      toRead -= read;
      if (written === 0 && read === 0) this.#wait(toWrite > 0, toRead > 0);
    }
  }

  /** Sends one byte there and back, `rounds` times. */
  bounce(rounds: number, starts: boolean): void {
    const endpoint = this.#endpoint;
    const byte = this.#byte;
    for (let round = 0; round < rounds; round++) {
      if (starts) endpoint.write(byte);
      while (endpoint.read(byte) === 0) this.#wait(false, true);
      if (!starts) endpoint.write(byte);
    }
  }

  /** False when the peer closed, or we were stopped, before another job arrived. */
  expectJob(into: Uint8Array): boolean {
    for (;;) {
      if (this.#control.stopped) return false;
      this.#endpoint.sample();
      if (this.#endpoint.readable >= into.length) return this.#endpoint.recv(into);
      if (this.#endpoint.peerClosed || this.#endpoint.peerEnded) return false;
      this.#endpoint.wait(WRITTEN, -1);
    }
  }

  #chunk(buffer: Uint8Array, ringSize: number): Uint8Array {
    return buffer.subarray(0, Math.min(buffer.length, Math.max(1024, ringSize / 2)));
  }

  #wait(forRoom: boolean, forData: boolean): void {
    const endpoint = this.#endpoint;
    if (this.#control.stopped) throw new XentoolError("cancelled", "the benchmark was stopped");
    if (this.#control.peerDead) endpoint.declarePeerDead();
    if (endpoint.peerClosed)
      throw new XentoolError("io", `domain ${endpoint.peer} closed the vchan in the middle of a benchmark`);
    const wants = (forRoom ? READ : 0) | (forData ? WRITTEN : 0);
    if (this.#timeoutMs === Infinity) endpoint.wait(wants, -1);
    else this.#waitInTime(wants);
  }

  #waitInTime(wants: number): void {
    const started = performance.now();
    const found = this.#endpoint.wait(wants, this.#timeoutMs);
    if (!found && performance.now() - started >= this.#timeoutMs)
      throw new XentoolError(
        "timeout",
        `domain ${this.#endpoint.peer} did nothing for ${this.#timeoutMs / 1000} s`,
      );
  }
}

function upTo(chunk: Uint8Array, length: number): Uint8Array {
  return length < chunk.length ? chunk.subarray(0, length) : chunk;
}

function encodeJob(job: BenchJob): Uint8Array {
  const view = new DataView(new ArrayBuffer(JOB_BYTES));
  view.setUint32(0, MAGIC, true);
  view.setUint32(4, BENCH_KINDS.indexOf(job.kind), true);
  view.setFloat64(8, job.amount, true);
  return new Uint8Array(view.buffer);
}

function decodeJob(bytes: Uint8Array): BenchJob {
  const view = new DataView(bytes.buffer);
  const kind = BENCH_KINDS[view.getUint32(4, true)];
  const amount = view.getFloat64(8, true);
  if (view.getUint32(0, true) !== MAGIC || kind === undefined || !(amount >= 0 && amount <= BENCH_AMOUNT_MAX))
    throw new XentoolError("protocol", "the peer does not speak the protocol of `xentool vchan bench`");
  return { kind, amount };
}
