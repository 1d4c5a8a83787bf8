// The suite's `front` in another domain, over a line: here `remoteFront` asks, there `frontAnswers` answers with
// a real platform. One JSON line each way: ["notify", 3, 17] and {"value": 0} or {"error": "…", "kind": "io"}.
import { describeError, XentoolError, type ErrorKind } from "../../src/core/errors.ts";
import type { Domid, EvtchnPort } from "../../src/core/types.ts";
import type { Mapping } from "../../src/native/memory.ts";
import type {
  Access,
  EventChannels,
  GrantShare,
  Platform,
  UnmapNotify,
} from "../../src/platform/platform.ts";
import { eventWithin, type Front, type FrontMemory } from "./platform-suite.ts";

/** Sends a line and waits for the line that answers it; neither has its newline. */
export type Ask = (question: string) => string;

type Calls = ReturnType<typeof frontCalls>;
type Call = <Name extends keyof Calls>(
  name: Name,
  ...args: Parameters<Calls[Name]>
) => ReturnType<Calls[Name]>;

interface Answer {
  readonly value?: unknown;
  readonly error?: string;
  readonly kind?: ErrorKind;
}

/** What the asking side knows by number. */
class Held<T extends { close(): void }> {
  readonly #items = new Map<number, T>();
  #last = 0;

  add(item: T): number {
    this.#items.set(++this.#last, item);
    return this.#last;
  }

  get(id: number): T {
    const item = this.#items.get(id);
    if (item === undefined) throw new XentoolError("bug", `nothing open has the number ${id}`);
    return item;
  }

  close(id: number): void {
    this.get(id).close();
  }
}

/** The calls that can be asked for; arguments and results are JSON, bytes are base64. */
function frontCalls(platform: Platform) {
  const channels = new Held<EventChannels>();
  const shares = new Held<GrantShare>();
  const memories = new Held<Mapping>();
  return {
    openEventChannels: () => channels.add(platform.openEventChannels()),
    bindUnbound: (id: number, domid: Domid) => channels.get(id).bindUnbound(domid),
    notify: (id: number, port: EvtchnPort) => channels.get(id).notify(port),
    unmask: (id: number, port: EvtchnPort) => channels.get(id).unmask(port),
    unbind: (id: number, port: EvtchnPort) => channels.get(id).unbind(port),
    wait: (id: number, milliseconds: number) => eventWithin(channels.get(id), milliseconds),
    pending: (id: number, capacity: number) => {
      const ports = new Uint32Array(capacity);
      const count = channels.get(id).pending(ports);
      return { count, ports: Array.from(ports) };
    },
    closeEventChannels: (id: number) => channels.close(id),

    openGrantShare: () => shares.add(platform.openGrantShare()),
    share: (id: number, domid: Domid, pages: number, access: Access, notify: UnmapNotify | null) => {
      const { refs, mapping } = shares.get(id).share(domid, pages, access, notify ?? undefined);
      return { refs, sizeBytes: mapping.sizeBytes, memory: memories.add(mapping) };
    },
    closeGrantShare: (id: number) => shares.close(id),

    read: (id: number, at: number, length: number) =>
      memories
        .get(id)
        .bytes.subarray(at, at + length)
        .toBase64(),
    write: (id: number, at: number, base64: string) =>
      memories.get(id).bytes.set(Uint8Array.fromBase64(base64), at),
    closeMemory: (id: number) => memories.close(id),
  };
}

/** Answers what a `remoteFront` asks, with `platform`. */
export function frontAnswers(platform: Platform): Ask {
  const calls = frontCalls(platform);
  return (question) => {
    const [name, ...args] = JSON.parse(question) as [keyof Calls, ...never[]];
    try {
      const value = (calls[name] as (...args: never[]) => unknown)(...args);
      return JSON.stringify({ value } satisfies Answer);
    } catch (error) {
      const kind = error instanceof XentoolError ? error.kind : "bug";
      return JSON.stringify({ error: describeError(error), kind } satisfies Answer);
    }
  };
}

/** Domain `domid` as `front`, whose `frontAnswers` is reached by `ask`. */
export function remoteFront(domid: Domid, ask: Ask): Front {
  const call: Call = (name, ...args) => {
    const answer = JSON.parse(ask(JSON.stringify([name, ...args]))) as Answer;
    if (answer.error !== undefined) throw new XentoolError(answer.kind ?? "bug", answer.error);
    return answer.value as ReturnType<Calls[typeof name]>;
  };
  return {
    domid,
    openEventChannels() {
      const id = call("openEventChannels");
      return {
        bindUnbound: (peer) => call("bindUnbound", id, peer),
        notify: (port) => call("notify", id, port),
        unmask: (port) => call("unmask", id, port),
        unbind: (port) => call("unbind", id, port),
        wait: (milliseconds) => call("wait", id, milliseconds),
        pending(ports) {
          const taken = call("pending", id, ports.length);
          ports.set(taken.ports);
          return taken.count;
        },
        close: () => call("closeEventChannels", id),
      };
    },
    openGrantShare() {
      const id = call("openGrantShare");
      return {
        share(peer, pages, access, notify) {
          const { refs, sizeBytes, memory } = call("share", id, peer, pages, access, notify ?? null);
          return { refs, mapping: remoteMemory(call, memory, sizeBytes) };
        },
        close: () => call("closeGrantShare", id),
      };
    },
  };
}

function remoteMemory(call: Call, id: number, sizeBytes: number): FrontMemory {
  const read = (at: number, length: number) => Uint8Array.fromBase64(call("read", id, at, length));
  const write = (at: number, bytes: Uint8Array) => call("write", id, at, bytes.toBase64());
  return { sizeBytes, bytes: remoteBytes(sizeBytes, read, write), close: () => call("closeMemory", id) };
}

/** An array whose elements, `fill` and `set` are the memory itself; its other methods see it as it is when called. */
function remoteBytes(
  sizeBytes: number,
  read: (at: number, length: number) => Uint8Array,
  write: (at: number, bytes: Uint8Array) => void,
): Uint8Array<ArrayBuffer> {
  const writers = {
    fill: (value: number) => write(0, new Uint8Array(sizeBytes).fill(value)),
    set: (bytes: ArrayLike<number>, at = 0) => write(at, Uint8Array.from(bytes)),
  };
  return new Proxy(new Uint8Array(sizeBytes), {
    get(_, name) {
      if (name === "fill" || name === "set") return writers[name];
      if (isIndex(name)) return read(Number(name), 1)[0];
      const now = read(0, sizeBytes);
      const value: unknown = Reflect.get(now, name, now);
      return typeof value === "function" ? (value as (...args: never[]) => unknown).bind(now) : value;
    },
    set(_, name, value: number) {
      if (!isIndex(name)) return false;
      write(Number(name), Uint8Array.of(value));
      return true;
    },
  });
}

function isIndex(name: string | symbol): boolean {
  return typeof name === "string" && /^\d+$/.test(name);
}
