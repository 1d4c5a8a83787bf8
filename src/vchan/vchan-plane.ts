// The plane of a vchan: it owns the endpoint and carries out what the control side orders, blocking in one place
// meanwhile. Everything that moves bytes can also be called without a thread of its own.
import { XentoolError } from "../core/errors.ts";
import { Reactor } from "../native/reactor.ts";
import { check, errnoText, shim } from "../native/shim.ts";
import type { CarryOut } from "../plane/answer.ts";
import { openPlatform } from "../platform/open.ts";
import type { Platform, PlatformDescriptor } from "../platform/platform.ts";
import { runBenchJob, serveBenchJobs } from "./bench.ts";
import { openVchanClient } from "./client.ts";
import { WRITTEN, type VchanEndpoint } from "./endpoint.ts";
import { Relay } from "./relay.ts";
import { openVchanServer } from "./server.ts";
import { VchanControl } from "./vchan-control.ts";
import type { VchanOrder, VchanResults, VchanTask } from "./vchan-orders.ts";

const EAGAIN = -11;

let session: VchanPlaneSession | undefined;

/** Carries out one order. What it opened stays open for the next one. */
export const carryOutVchanOrder: CarryOut<VchanOrder> = (task, page) => {
  session ??= new VchanPlaneSession(new VchanControl(page));
  return session.run(task);
};

/** An endpoint on a platform of its own, which lives as long. */
class OpenedEndpoint {
  readonly endpoint: VchanEndpoint;
  readonly #platform: Platform;

  private constructor(endpoint: VchanEndpoint, platform: Platform) {
    this.endpoint = endpoint;
    this.#platform = platform;
  }

  /** Opens the platform, and with `open` the endpoint on it, which comes with what else `open` returns. */
  static open<T extends { readonly endpoint: VchanEndpoint }>(
    descriptor: PlatformDescriptor,
    open: (platform: Platform) => T,
  ): [OpenedEndpoint, T] {
    using undo = new DisposableStack();
    const platform = undo.use(openPlatform(descriptor));
    const result = open(platform);
    undo.move();
    return [new OpenedEndpoint(result.endpoint, platform), result];
  }

  close(): void {
    this.endpoint.close();
    this.#platform.close();
  }
}

/** The state between tasks: one endpoint, and that of the client before while a server changes over. */
export class VchanPlaneSession {
  readonly #control: VchanControl;
  #current: OpenedEndpoint | undefined;
  #before: OpenedEndpoint | undefined;

  constructor(control: VchanControl) {
    this.#control = control;
  }

  run(task: VchanTask): VchanResults[VchanTask["op"]] {
    switch (task.op) {
      case "serve":
        return this.#serve(task);
      case "await-client":
        return this.#awaitClient();
      case "connect":
        return this.#connect(task);
      case "accept":
        return this.#accept(task.listener);
      case "relay":
        return new Relay(this.#opened(), this.#control, task).run();
      case "bench-serve":
        return serveBenchJobs(this.#opened(), this.#control);
      case "bench-run":
        return runBenchJob(this.#opened(), this.#control, task.job, task.timeoutMs);
      case "close-before":
        return this.#closeBefore();
      case "close":
        return this.#close();
    }
  }

  #serve(task: VchanOrder<"serve">["order"]): VchanResults["serve"] {
    const [opened, { endpoint, ringRef, port }] = OpenedEndpoint.open(task.platform, (platform) =>
      openVchanServer(platform, task),
    );
    this.#before = this.#current;
    this.#current = opened;
    return { keys: { ringRef, port }, readSize: endpoint.readSize, writeSize: endpoint.writeSize };
  }

  #connect(task: VchanOrder<"connect">["order"]): VchanResults["connect"] {
    this.#close();
    const { peer, keys } = task;
    const [opened, { endpoint }] = OpenedEndpoint.open(task.platform, (platform) => ({
      endpoint: openVchanClient(platform, { peer, ...keys }),
    }));
    this.#current = opened;
    const { readSize, writeSize, peerSpeaksOfEnd } = endpoint;
    return { readSize, writeSize, peerSpeaksOfEnd };
  }

  #awaitClient(): boolean {
    const endpoint = this.#opened();
    using _ = this.#control.wakes(endpoint.reactor);
    for (;;) {
      endpoint.sample();
      if (endpoint.connected) return true;
      if (this.#control.stopped) return false;
      endpoint.wait(WRITTEN, -1);
    }
  }

  #accept(listener: number): number | undefined {
    using reactor = Reactor.open(1, "sync");
    using _ = this.#control.wakes(reactor);
    let fd = EAGAIN;
    reactor.watch(listener, () => {
      fd = shim.xt_stream_accept(listener);
    });
    while (!this.#control.stopped) {
      check(reactor.wait(1, -1), "wait for a connection");
      reactor.dispatch();
      if (fd >= 0) return fd;
      if (fd !== EAGAIN) throw new XentoolError("io", `cannot accept a connection: ${errnoText(fd)}`);
    }
    return undefined;
  }

  #closeBefore(): undefined {
    this.#before?.close();
    this.#before = undefined;
  }

  #close(): undefined {
    this.#closeBefore();
    this.#current?.close();
    this.#current = undefined;
  }

  #opened(): VchanEndpoint {
    if (this.#current === undefined)
      throw new XentoolError("bug", "a vchan task before the vchan was opened");
    return this.#current.endpoint;
  }
}
