// The processes of guests as their supervisor sees them, with fakes in their place: when one is started, ended and
// followed by another, and what becomes of one that says what it should not.
import { closeSync, openSync } from "node:fs";
import { describe, expect, jest, spyOn, test } from "bun:test";
import { GONE_PATIENCE_MS, LEAVING_PATIENCE_MS } from "../../src/blkback/bounds.ts";
import { DEFAULT_OFFER } from "../../src/blkback/device/features.ts";
import { decideGuest, type SeenGuest } from "../../src/blkback/guests/decide-guest.ts";
import { GuestProcess, type GuestChild, type ProcessGround } from "../../src/blkback/guests/guest-process.ts";
import { READY_PATIENCE_MS, untilReady } from "../../src/blkback/guests/handover.ts";
import {
  encodeLine,
  linesOf,
  parseReport,
  type GuestReport,
  type GuestSettings,
} from "../../src/blkback/guests/messages.ts";
import { SupervisedGuest } from "../../src/blkback/guests/supervised-guest.ts";
import { toDomid } from "../../src/core/types.ts";

const { deviceType: _, ...offer } = DEFAULT_OFFER;
const SETTINGS: GuestSettings = {
  platform: { name: "sim", dir: "/nowhere", domid: toDomid(0) },
  frontend: toDomid(5),
  kind: "vbd",
  offer,
  direct: false,
  anyScript: true,
  grantMode: "copy",
  engine: "uring",
  filters: [],
  statsDir: "/nowhere",
  verbosity: 0,
  jail: "off",
  isRelayed: true,
};

const services: ProcessGround = {
  openImage: async () => {
    throw new Error("no image");
  },
  lock: async () => {
    throw new Error("no lock");
  },
  openChannels: () => {
    throw new Error("no channels");
  },
  connectStore: async (socket) => ({ close: () => closeSync(socket) }),
  tidyUp: async () => {},
};

/** A process that does what the test says. */
class FakeChild implements GuestChild {
  readonly orders: string[] = [];
  readonly kills: string[] = [];
  readonly descriptors = openSync("/dev/null", "r");
  readonly xenstore = openSync("/dev/null", "r");
  readonly stdout: ReadableStream<Uint8Array>;
  readonly exited: Promise<number>;
  signalCode: NodeJS.Signals | null = null;
  readonly #exit = Promise.withResolvers<number>();
  #say: ReadableStreamDefaultController<Uint8Array> | undefined;

  constructor() {
    this.exited = this.#exit.promise;
    this.stdout = new ReadableStream({ start: (controller) => void (this.#say = controller) });
  }

  readonly stdin = {
    write: (text: string): void => void this.orders.push(JSON.parse(text).order as string),
    flush: (): void => {},
    end: (): void => {},
  };

  say(text: string): void {
    this.#say?.enqueue(new TextEncoder().encode(text));
  }

  kill(signal: NodeJS.Signals): void {
    this.kills.push(signal);
    this.die(137, signal);
  }

  die(status: number, signal: NodeJS.Signals | null = null): void {
    this.signalCode = signal;
    this.#exit.resolve(status);
  }
}

const ignored = { onEvent: () => {}, onChange: () => {} };

const question = (ask: number): GuestReport => ({ report: "ask", ask, what: "image", devid: ask });

/** Until what was set off by the last step has happened. */
const settle = (): Promise<void> => new Promise((resolve) => void setImmediate(resolve));

describe("what to do about a guest's process", () => {
  const quiet: SeenGuest = { hasDisks: true, process: "none", served: 0, withoutDisksMs: 0, pauseMs: 0 };
  test.each<[string, Partial<SeenGuest>, string]>([
    ["a guest with disks has one", {}, "start"],
    ["after deaths, in a while", { pauseMs: 200 }, "wait"],
    ["a guest without disks has none", { hasDisks: false }, "forget"],
    ["nor does it wait for one", { hasDisks: false, pauseMs: 200 }, "forget"],
    ["one that serves goes on", { process: "serving", served: 1 }, "none"],
    ["also before it serves anything", { process: "serving" }, "none"],
    [
      "and while a disk that is gone still has its image open",
      { process: "serving", hasDisks: false, served: 1, withoutDisksMs: GONE_PATIENCE_MS - 1 },
      "wait",
    ],
    [
      "but not for ever, whatever it says",
      { process: "serving", hasDisks: false, served: 1, withoutDisksMs: GONE_PATIENCE_MS },
      "end",
    ],
    ["and ends when nothing is left", { process: "serving", hasDisks: false }, "end"],
    ["one that ends is waited for, whatever comes", { process: "ending" }, "none"],
    ["and whatever went", { process: "ending", hasDisks: false, served: 1 }, "none"],
  ])("%s", (_what, seen, step) => {
    expect(decideGuest({ ...quiet, ...seen }).step).toBe(step as "none");
  });
});

describe("a report", () => {
  test.each([
    '{"report":"alive"}',
    '{"report":"prepared"}',
    '{"report":"settled"}',
    '{"report":"left"}',
    '{"report":"disks","count":3}',
    '{"report":"ask","ask":4,"what":"image","devid":51728}',
    '{"report":"ask","ask":4,"what":"channels","devid":51728}',
    '{"report":"event","devid":51728,"event":{"event":"connected"}}',
    '{"report":"event","devid":51728,"event":{"event":"resized","before":8,"after":16}}',
  ])("is understood: %s", (line) => {
    expect(parseReport(line)).toEqual(JSON.parse(line));
  });

  test.each([
    "",
    "nonsense",
    "null",
    "[]",
    '"alive"',
    '{"report":"dead"}',
    '{"report":"disks"}',
    '{"report":"ask","ask":4,"what":"/etc/shadow","devid":51728}',
    '{"report":"ask","ask":4,"what":"image","devid":"../0"}',
    '{"report":"disks","count":-1}',
    '{"report":"disks","count":1e300}',
    '{"report":"event","devid":1}',
    '{"report":"event","devid":"1","event":{"event":"connected"}}',
    '{"report":"event","devid":1,"event":{"event":"\\u001b[2J"}}',
    '{"report":"event","devid":1,"event":{"event":"resized","before":8}}',
    '{"report":"event","devid":1,"event":null}',
  ])("is refused: %s", (line) => {
    expect(parseReport(line)).toBeUndefined();
  });

  test("has nothing beside what is known of it", () => {
    const more = '{"report":"event","devid":1,"event":{"event":"waiting","text":"x"},"frontend":7}';
    expect(parseReport(more)).toEqual({ report: "event", devid: 1, event: { event: "waiting" } });
  });
});

test("lines come whole however they are cut, and not without end", async () => {
  const stream = (...texts: string[]) => new Blob(texts).stream();
  expect(await Array.fromAsync(linesOf(stream("a", "b\nc", "\n", "d")))).toEqual(["ab", "c"]);
  expect(Array.fromAsync(linesOf(stream("x".repeat(70_000))))).rejects.toThrow("does not end");
});

describe("the process of a guest", () => {
  test("is told what it serves, then to serve, then to end", async () => {
    const child = new FakeChild();
    const process = new GuestProcess(SETTINGS, services, () => child, ignored);
    process.serve();
    process.tend(1000);
    process.end();
    expect(child.orders).toEqual(["prepare", "serve", "alive", "end"]);
    expect(process.isEnding).toBe(true);
    child.die(0);
    expect(await process.ended).toBe("status 0");
  });

  test("is heard", async () => {
    const child = new FakeChild();
    const heard: unknown[] = [];
    const process = new GuestProcess(SETTINGS, services, () => child, {
      onEvent: (devid, event) => heard.push([devid, event.event]),
      onChange: () => heard.push(process.disks),
    });
    child.say('{"report":"disks","count":2}\n{"report":"event","devid":768,"event":{"event":"waiting"}}\n');
    await settle();
    expect(heard).toEqual([2, [768, "waiting"]]);
    child.die(0);
  });

  test.each([
    ["what makes no sense", "hello\n"],
    ["a line without end", "x".repeat(70_000)],
  ])("is killed when it says %s", async (_what, text) => {
    const child = new FakeChild();
    const process = new GuestProcess(SETTINGS, services, () => child, ignored);
    child.say(text);
    expect(await process.ended).toBe("SIGKILL");
  });

  test("is killed once, and not heard any more, however much it says", async () => {
    const child = new FakeChild();
    const process = new GuestProcess(SETTINGS, services, () => child, ignored);
    child.say(`${"\n".repeat(1000)}{"report":"disks","count":1}\n`);
    await process.ended;
    await settle();
    expect(process.disks).toBe(0);
    expect(child.kills).toEqual(["SIGKILL"]);
  });

  test("is killed when it says too much", async () => {
    const child = new FakeChild();
    let heard = 0;
    const process = new GuestProcess(SETTINGS, services, () => child, {
      ...ignored,
      onChange: () => heard++,
    });
    child.say('{"report":"disks","count":1}\n'.repeat(100_000));
    expect(await process.ended).toBe("SIGKILL");
    await settle();
    expect(heard).toBeLessThan(100_000);
  });

  test("is killed when it asks for too much at the same time", async () => {
    const child = new FakeChild();
    const openImage: ProcessGround["openImage"] = (_devid, stop) =>
      new Promise((_resolve, reject) => stop.addEventListener("abort", reject));
    const process = new GuestProcess(SETTINGS, { ...services, openImage }, () => child, ignored);
    const now = spyOn(performance, "now");
    try {
      for (let asked = 0, second = 0; asked < 4096; second++) {
        now.mockImplementation(() => second * 1000);
        for (let i = 0; i < 1024; i++, asked++) child.say(`${encodeLine(question(asked))}`);
        await settle();
      }
      expect(child.kills).toEqual([]);
      child.say(encodeLine(question(4096)));
      expect(await process.ended).toBe("SIGKILL");
    } finally {
      now.mockRestore();
    }
  });

  test("is killed when it does not read, and its images are closed", async () => {
    const sleeper = Bun.spawn(["sleep", "infinity"], { stdio: ["pipe", "pipe", "inherit"] });
    const child = Object.assign(new FakeChild(), { stdin: sleeper.stdin });
    child.kill = (signal) => {
      child.kills.push(signal);
      sleeper.kill(signal);
    };
    void sleeper.exited.then((status) => child.die(status, "SIGKILL"));
    const process = new GuestProcess(SETTINGS, services, () => child, ignored);
    let orders = 0;
    for (; child.kills.length === 0; orders++) {
      process.tend(Infinity);
      if (orders % 1000 === 0) await settle();
    }
    expect(await process.ended).toBe("SIGKILL");
    // What a pipe holds is not ours to keep.
    expect(orders).toBeWithin((1 << 20) / 20, (1 << 21) / 15);
  });

  test("that reads may be told any number of things", async () => {
    const reader = Bun.spawn(["cat"], { stdio: ["pipe", "ignore", "inherit"] });
    const child = Object.assign(new FakeChild(), { stdin: reader.stdin });
    const process = new GuestProcess(SETTINGS, services, () => child, ignored);
    for (let orders = 0; orders < 200_000; orders++) {
      process.tend(Infinity);
      if (orders % 1000 === 0) await reader.stdin.flush();
    }
    expect(child.kills).toEqual([]);
    process.end();
    await reader.stdin.end();
    child.die(await reader.exited);
    expect(await process.ended).toBe("status 0");
  });

  test("is killed when it does not end, and not before", async () => {
    jest.useFakeTimers();
    try {
      const [stuck, good] = [new FakeChild(), new FakeChild()];
      const process = new GuestProcess(SETTINGS, services, () => stuck, ignored);
      process.end();
      jest.advanceTimersByTime(LEAVING_PATIENCE_MS - 1);
      process.end();
      expect(stuck.kills).toEqual([]);
      jest.advanceTimersByTime(1);
      expect(stuck.kills).toEqual(["SIGKILL"]);
      const other = new GuestProcess(SETTINGS, services, () => good, ignored);
      other.end();
      good.die(0);
      await other.ended;
      jest.advanceTimersByTime(LEAVING_PATIENCE_MS);
      expect(good.kills).toEqual([]);
    } finally {
      jest.useRealTimers();
    }
  });

  test("that was never asked is not late", () => {
    const child = new FakeChild();
    const process = new GuestProcess(SETTINGS, services, () => child, ignored);
    const now = spyOn(performance, "now");
    try {
      const later = performance.now() + 5000;
      now.mockImplementation(() => later);
      process.tend(1000);
      expect(child.kills).toEqual([]);
      now.mockImplementation(() => later + 1001);
      process.tend(1000);
      expect(child.kills).toEqual(["SIGKILL"]);
    } finally {
      now.mockRestore();
    }
  });

  test("is killed when it does not answer, and not before", async () => {
    const child = new FakeChild();
    const process = new GuestProcess(SETTINGS, services, () => child, ignored);
    const now = spyOn(performance, "now");
    try {
      const start = performance.now();
      now.mockImplementation(() => start + 900);
      process.tend(1000);
      expect(child.kills).toEqual([]);
      child.say('{"report":"alive"}\n');
      await settle();
      now.mockImplementation(() => start + 1800);
      process.tend(1000);
      expect(child.kills).toEqual([]);
      now.mockImplementation(() => start + 2000);
      process.tend(1000);
      expect(child.kills).toEqual(["SIGKILL"]);
    } finally {
      now.mockRestore();
    }
  });
});

describe("a guest that is supervised", () => {
  let children: FakeChild[] = [];
  let disks = true;
  let forgotten = 0;
  let refusals = 0;
  const make = (isHeld = false): SupervisedGuest => {
    [children, disks, forgotten, refusals] = [[], true, 0, 0];
    const spawnGuest = (): GuestChild => {
      if (refusals-- > 0) throw new Error("EAGAIN");
      const child = new FakeChild();
      children.push(child);
      return child;
    };
    const ground = {
      frontend: SETTINGS.frontend,
      hasDisks: async () => disks,
      start: (onChange: () => void) =>
        new GuestProcess(SETTINGS, services, spawnGuest, { ...ignored, onChange }),
      onForgotten: () => void forgotten++,
    };
    return new SupervisedGuest(ground, isHeld);
  };

  const until = async (holds: () => boolean): Promise<void> => {
    while (!holds()) await Bun.sleep(1);
  };

  test("has one process, however often it is looked at, and none when its disks are gone", async () => {
    const guest = make();
    await Promise.all([guest.look(), guest.look(), guest.look()]);
    await guest.look();
    expect(children.map(({ orders }) => orders)).toEqual([["prepare", "serve"]]);
    children[0].say('{"report":"disks","count":1}\n');
    await settle();
    disks = false;
    await guest.look();
    expect(children[0].orders).not.toContain("end");
    children[0].say('{"report":"disks","count":0}\n');
    await until(() => children[0].orders.includes("end"));
    children[0].die(0);
    await until(() => forgotten === 1);
    expect(children).toHaveLength(1);
  });

  test("that gets a disk while it is about to be forgotten has a process", async () => {
    const guest = make();
    disks = false;
    const looked = guest.look();
    // Like the event of a new disk that comes together with the answer that there is none.
    disks = true;
    await guest.look();
    await looked;
    expect(children.map(({ orders }) => orders)).toEqual([["prepare", "serve"]]);
    expect(forgotten).toBe(0);
    const over = guest.end();
    children[0].die(0);
    await over;
  });

  test("that has lost its disks has no process for ever that says it closes them", async () => {
    const guest = make();
    await guest.look();
    children[0].say('{"report":"disks","count":1}\n');
    await settle();
    const now = spyOn(performance, "now");
    try {
      const later = performance.now() + GONE_PATIENCE_MS;
      // One that has a disk again begins anew.
      for (const has of [false, true, false]) {
        disks = has;
        await guest.look();
      }
      expect(children[0].orders).not.toContain("end");
      now.mockImplementation(() => later + 1000);
      await guest.look();
      expect(children[0].orders).toContain("end");
    } finally {
      now.mockRestore();
    }
    children[0].die(0);
    await until(() => forgotten === 1);
  });

  test("leaves no timer behind when it is forgotten", async () => {
    jest.useFakeTimers();
    try {
      const guest = make();
      await guest.look();
      children[0].say('{"report":"disks","count":1}\n');
      disks = false;
      for (let i = 0; i < 100; i++) await Promise.resolve();
      await guest.look();
      expect(jest.getTimerCount()).toBe(1);
      children[0].die(1);
      for (let i = 0; i < 100 && forgotten === 0; i++) await Promise.resolve();
      expect([forgotten, jest.getTimerCount()]).toEqual([1, 0]);
    } finally {
      jest.useRealTimers();
    }
  });

  test("that gets a disk while its process ends has another one afterwards", async () => {
    const guest = make();
    await guest.look();
    disks = false;
    await guest.look();
    expect(children[0].orders).toEqual(["prepare", "serve", "end"]);
    disks = true;
    await guest.look();
    expect(children).toHaveLength(1);
    children[0].die(0);
    await until(() => children.length === 2);
    expect(forgotten).toBe(0);
    const over = guest.end();
    children[1].die(0);
    await over;
  });

  test("that another watch still serves has a process that waits until it is released", async () => {
    const guest = make(true);
    await guest.look();
    expect(children[0].orders).toEqual(["prepare"]);
    guest.release();
    guest.release();
    expect(children[0].orders).toEqual(["prepare", "serve"]);
    const left = guest.leave();
    children[0].say('{"report":"left"}\n');
    await left;
    children[0].die(0);
    await guest.end();
  });

  test("has another process each time one dies or cannot be started, until it ends", async () => {
    const guest = make();
    refusals = 1;
    await guest.look();
    for (let round = 0; round < 2; round++) {
      await until(() => children.length === round + 1);
      children[round].kill("SIGKILL");
    }
    await until(() => children.length === 3);
    const over = guest.end();
    children[2].die(1);
    await over;
    await guest.look();
    expect(children).toHaveLength(3);
  });
});

test("a successor that hangs before it is ready is waited for no longer than one that is slow", async () => {
  jest.useFakeTimers();
  try {
    const { promise, resolve } = Promise.withResolvers<void>();
    const hung = untilReady({ ready: new Promise<never>(() => {}) }).catch(String);
    const slow = untilReady({ ready: promise });
    jest.advanceTimersByTime(READY_PATIENCE_MS - 1);
    resolve();
    await slow;
    jest.advanceTimersByTime(1);
    expect(await hung).toContain("the next `watch` does not become ready");
    expect(jest.getTimerCount()).toBe(0);
  } finally {
    jest.useRealTimers();
  }
});
