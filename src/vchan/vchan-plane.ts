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

/** The state between tasks: at most one endpoint at a time. */
export class VchanPlaneSession {
  readonly #control: VchanControl;
  #endpoint: VchanEndpoint | undefined;
  #closePlatform: (() => void) | undefined;

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
      case "close":
        return this.#close();
    }
  }

  #serve(task: VchanOrder<"serve">["order"]): VchanResults["serve"] {
    const { endpoint, ringRef, port } = this.#open(task.platform, (platform) =>
      openVchanServer(platform, task),
    );
    this.#endpoint = endpoint;
    return { keys: { ringRef, port }, readSize: endpoint.readSize, writeSize: endpoint.writeSize };
  }

  #connect(task: VchanOrder<"connect">["order"]): VchanResults["connect"] {
    const { peer, keys } = task;
    const endpoint = this.#open(task.platform, (platform) => openVchanClient(platform, { peer, ...keys }));
    this.#endpoint = endpoint;
    const { readSize, writeSize, peerSpeaksOfEnd } = endpoint;
    return { readSize, writeSize, peerSpeaksOfEnd };
  }

  /**
   * Opens an endpoint on a platform. The platform lives as long as the endpoint; if opening fails, it is closed at
   * once.
   */
  #open<T>(descriptor: PlatformDescriptor, open: (platform: Platform) => T): T {
    this.#close();
    const platform = openPlatform(descriptor);
    try {
      const opened = open(platform);
      this.#closePlatform = () => platform.close();
      return opened;
    } catch (error) {
      platform.close();
      throw error;
    }
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

  #close(): undefined {
    this.#endpoint?.close();
    this.#endpoint = undefined;
    this.#closePlatform?.();
    this.#closePlatform = undefined;
  }

  #opened(): VchanEndpoint {
    if (this.#endpoint === undefined)
      throw new XentoolError("bug", "a vchan task before the vchan was opened");
    return this.#endpoint;
  }
}
