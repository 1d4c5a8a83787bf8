// What every platform does, as cases over two domains: `front` shares pages and makes event channels, as a
// guest does, and `back` maps, copies and binds. They run on the simulated platform in test/conformance and
// on a real Xen in its lab, where `front` may be a guest (remote-front.ts); where they differ, the simulation is wrong.
import { deepStrictEqual, ok, strictEqual, throws } from "node:assert/strict";
import { closeSync, openSync, readSync } from "node:fs";
import { XentoolError } from "../../src/core/errors.ts";
import { PAGE_SIZE, type Domid, type EvtchnPort, type GrantRef } from "../../src/core/types.ts";
import { GrantCopyBatch } from "../../src/native/grant-copy.ts";
import { allocateMemory, type Mapping } from "../../src/native/memory.ts";
import type {
  EventChannels,
  GrantShare,
  Platform,
  SharedPages,
  UnmapNotify,
} from "../../src/platform/platform.ts";
import { isReadableWithin } from "../support/descriptors.ts";

export interface TwoDomains {
  readonly front: Front;
  readonly back: Platform;
}

/** What the cases need of the domain that shares. Any Platform is one. */
export interface Front {
  readonly domid: Domid;
  openEventChannels(): FrontChannels;
  openGrantShare(): FrontShare;
}

type ChannelCalls = Pick<EventChannels, "bindUnbound" | "notify" | "pending" | "unmask" | "unbind" | "close">;

/** Event channels that are waited for by their descriptor or, in another domain, by a call. */
export type FrontChannels = ChannelCalls &
  (Pick<EventChannels, "fd"> | { wait(milliseconds: number): boolean });

export type FrontMemory = Pick<Mapping, "bytes" | "sizeBytes" | "close">;

export interface FrontShare {
  share(...args: Parameters<GrantShare["share"]>): Pick<SharedPages, "refs"> & { mapping: FrontMemory };
  close(): void;
}

export type PlatformCase = (domains: TwoDomains) => void;

const EVENT_WAIT_MS = 2000;
const QUIET_MS = 20;
/** Not 0, which is the console's page in a guest. */
const NOT_A_GREF = 0x7fff_fff0;

/** Runs `body` with what `open` gives, closes it whatever happens. */
function using<T extends { close(): void }>(resource: T, body: (resource: T) => void): void {
  try {
    body(resource);
  } finally {
    resource.close();
  }
}

function withChannels(
  { front, back }: TwoDomains,
  body: (front: FrontChannels, back: EventChannels) => void,
): void {
  using(front.openEventChannels(), (ours) => using(back.openEventChannels(), (theirs) => body(ours, theirs)));
}

interface Connected {
  readonly front: FrontChannels;
  readonly back: EventChannels;
  readonly frontPort: EvtchnPort;
  readonly backPort: EvtchnPort;
}

/** An event channel from `front` to `back`, the first local event taken and both ends unmasked. */
function connected(domains: TwoDomains, body: (ends: Connected) => void): void {
  withChannels(domains, (front, back) => {
    const frontPort = front.bindUnbound(domains.back.domid);
    const backPort = back.bindInterdomain(domains.front.domid, frontPort);
    deepStrictEqual(takeEvents(back), [backPort]);
    strictEqual(back.unmask(backPort), 0);
    strictEqual(front.unmask(frontPort), 0);
    body({ front, back, frontPort, backPort });
  });
}

/** Whether a port is there to be read, or is within so long. */
export function eventWithin(channels: FrontChannels, milliseconds: number): boolean {
  if ("wait" in channels) return channels.wait(milliseconds);
  return isReadableWithin(channels.fd, milliseconds);
}

/** The ports that are delivered next; fails when none comes. */
function takeEvents(channels: FrontChannels): number[] {
  ok(eventWithin(channels, EVENT_WAIT_MS), "no event came");
  const ports = new Uint32Array(64);
  return Array.from(ports.subarray(0, channels.pending(ports)));
}

/** `count` different ports, which a real Xen may deliver one by one. */
function takePorts(channels: FrontChannels, count: number): Set<number> {
  const taken = new Set<number>();
  while (taken.size < count) for (const port of takeEvents(channels)) taken.add(port);
  return taken;
}

function expectNoEvent(channels: FrontChannels): void {
  ok(!eventWithin(channels, QUIET_MS), "an event came");
  strictEqual(channels.pending(new Uint32Array(4)), 0);
}

function failsWithIo(what: () => unknown): void {
  throws(what, (error: unknown) => error instanceof XentoolError && error.kind === "io");
}

function withShare(
  { front, back }: TwoDomains,
  pages: number,
  access: "r" | "rw",
  body: (memory: FrontMemory, refs: readonly GrantRef[]) => void,
  notify?: UnmapNotify,
): void {
  using(front.openGrantShare(), (share) => {
    const { mapping, refs } = share.share(back.domid, pages, access, notify);
    using(mapping, () => body(mapping, refs));
  });
}

function withMap(
  { front, back }: TwoDomains,
  refs: readonly GrantRef[],
  access: "r" | "rw",
  body: (memory: Mapping) => void,
  notify?: UnmapNotify,
): void {
  using(back.openGrantTable(), (table) => using(table.map(front.domid, refs, access, notify), body));
}

/** Whether the kernel lets anyone write there: asked of read(2), which answers EFAULT instead of crashing us. */
function isWritable(memory: Mapping): boolean {
  const zero = openSync("/dev/zero", "r");
  try {
    return readSync(zero, memory.bytes, 0, 1, null) === 1;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EFAULT") return false;
    throw error;
  } finally {
    closeSync(zero);
  }
}

/** Runs one batch and gives the statuses, or the errno of a call that failed as a whole. */
function copy(
  { back }: TwoDomains,
  fill: (batch: GrantCopyBatch, local: Mapping) => void,
): number[] | number {
  let result: number[] | number = 0;
  using(back.openGrantTable(), (table) =>
    using(allocateMemory(4 * PAGE_SIZE), (local) =>
      using(new GrantCopyBatch(16), (batch) => {
        fill(batch, local);
        const error = table.copy(batch);
        result = error < 0 ? error : Array.from({ length: batch.count }, (_, index) => batch.status(index));
      }),
    ),
  );
  return result;
}

const EVENT_CASES: Record<string, PlatformCase> = {
  "binding gives the binder one event at once, and the peer none": (domains) =>
    withChannels(domains, (front, back) => {
      const port = front.bindUnbound(domains.back.domid);
      const bound = back.bindInterdomain(domains.front.domid, port);
      deepStrictEqual(takeEvents(back), [bound]);
      expectNoEvent(front);
    }),

  "an event reaches the peer, both ways": (domains) =>
    connected(domains, ({ front, back, frontPort, backPort }) => {
      strictEqual(back.notify(backPort), 0);
      deepStrictEqual(takeEvents(front), [frontPort]);
      strictEqual(front.notify(frontPort), 0);
      deepStrictEqual(takeEvents(back), [backPort]);
    }),

  "a delivered port stays masked until unmasked, and what came meanwhile is one event": (domains) =>
    connected(domains, ({ front, back, frontPort, backPort }) => {
      back.notify(backPort);
      deepStrictEqual(takeEvents(front), [frontPort]);
      for (let i = 0; i < 5; i++) back.notify(backPort);
      expectNoEvent(front);
      front.unmask(frontPort);
      deepStrictEqual(takeEvents(front), [frontPort]);
      front.unmask(frontPort);
      expectNoEvent(front);
    }),

  "events before the first read are one event": (domains) =>
    connected(domains, ({ front, back, frontPort, backPort }) => {
      for (let i = 0; i < 5; i++) back.notify(backPort);
      deepStrictEqual(takeEvents(front), [frontPort]);
      expectNoEvent(front);
    }),

  "binding to a port that does not exist fails": (domains) =>
    withChannels(domains, (_front, back) => {
      failsWithIo(() => back.bindInterdomain(domains.front.domid, 999 as EvtchnPort));
      failsWithIo(() => back.bindInterdomain(domains.front.domid, 0x7fff_ffff as EvtchnPort));
    }),

  "a port that is connected cannot be bound a second time": (domains) =>
    connected(domains, ({ back, frontPort }) =>
      failsWithIo(() => back.bindInterdomain(domains.front.domid, frontPort)),
    ),

  "closing sends the peer no event, and notifying a closed peer is no error": (domains) =>
    connected(domains, ({ front, back, frontPort, backPort }) => {
      back.unbind(backPort);
      expectNoEvent(front);
      strictEqual(front.notify(frontPort), 0);
      expectNoEvent(back);
    }),

  "after the peer closed its end it can bind again": (domains) =>
    connected(domains, ({ front, back, frontPort, backPort }) => {
      back.unbind(backPort);
      const again = back.bindInterdomain(domains.front.domid, frontPort);
      deepStrictEqual(takeEvents(back), [again]);
      back.notify(again);
      deepStrictEqual(takeEvents(front), [frontPort]);
    }),

  "closing a handle closes its ports: the peer can bind again from another": (domains) =>
    withChannels(domains, (front, back) => {
      const port = front.bindUnbound(domains.back.domid);
      using(domains.back.openEventChannels(), (other) => other.bindInterdomain(domains.front.domid, port));
      ok(back.bindInterdomain(domains.front.domid, port) > 0);
    }),

  "an unbound port takes notifies in silence": (domains) =>
    withChannels(domains, (front) => {
      strictEqual(front.notify(front.bindUnbound(domains.back.domid)), 0);
      expectNoEvent(front);
    }),

  "a port belongs to its handle": (domains) =>
    withChannels(domains, (front) => {
      const port = front.bindUnbound(domains.back.domid);
      using(domains.front.openEventChannels(), (other) => {
        ok(other.notify(port) < 0);
        failsWithIo(() => other.unbind(port));
        strictEqual(other.unmask(port), 0, "the device ignores unmasks of other ports");
      });
      failsWithIo(() => front.unbind(12_345 as EvtchnPort));
    }),

  "handles get the events of their own ports only": (domains) =>
    withChannels(domains, (front, back) =>
      using(domains.front.openEventChannels(), (other) => {
        const first = front.bindUnbound(domains.back.domid);
        const second = other.bindUnbound(domains.back.domid);
        back.bindInterdomain(domains.front.domid, first);
        back.notify(back.bindInterdomain(domains.front.domid, second));
        deepStrictEqual(takeEvents(other), [second]);
        expectNoEvent(front);
      }),
    ),

  "many ports of one handle are each delivered": (domains) =>
    withChannels(domains, (front, back) => {
      const ports = Array.from({ length: 40 }, () => front.bindUnbound(domains.back.domid));
      const bound = ports.map((port) => back.bindInterdomain(domains.front.domid, port));
      deepStrictEqual(takePorts(back, bound.length), new Set(bound));
      for (const port of bound) back.notify(port);
      deepStrictEqual(takePorts(front, ports.length), new Set(ports));
    }),
};

const GRANT_CASES: Record<string, PlatformCase> = {
  "shared pages are zero, and both sides see one memory": (domains) =>
    withShare(domains, 3, "rw", (ours, refs) => {
      strictEqual(refs.length, 3);
      strictEqual(ours.sizeBytes, 3 * PAGE_SIZE);
      ok(ours.bytes.every((byte) => byte === 0));
      ours.bytes[2 * PAGE_SIZE + 7] = 77;
      withMap(domains, refs, "rw", (theirs) => {
        strictEqual(theirs.bytes[2 * PAGE_SIZE + 7], 77);
        theirs.bytes[5] = 55;
        strictEqual(ours.bytes[5], 55);
      });
    }),

  "pages are zero again after they were used": (domains) => {
    withShare(domains, 4, "rw", (ours) => ours.bytes.fill(0xee));
    withShare(domains, 4, "rw", (ours) => ok(ours.bytes.every((byte) => byte === 0)));
  },

  "grants map in any order, contiguously, and more than once": (domains) =>
    withShare(domains, 4, "rw", (ours, refs) => {
      for (let page = 0; page < 4; page++) ours.bytes[page * PAGE_SIZE] = page + 1;
      const order = [3, 0, 0, 2, 1];
      withMap(
        domains,
        order.map((page) => refs[page]),
        "rw",
        (theirs) =>
          deepStrictEqual(
            order.map((_, index) => theirs.bytes[index * PAGE_SIZE]),
            order.map((page) => page + 1),
          ),
      );
    }),

  "a mapping for reading is memory that cannot be written": (domains) =>
    withShare(domains, 1, "rw", (_ours, refs) => {
      withMap(domains, refs, "r", (theirs) => ok(!isWritable(theirs)));
      withMap(domains, refs, "rw", (theirs) => ok(isWritable(theirs)));
    }),

  "a grant for reading cannot be mapped for writing": (domains) =>
    withShare(domains, 1, "r", (ours, refs) => {
      ours.bytes[0] = 1;
      failsWithIo(() => withMap(domains, refs, "rw", () => {}));
      withMap(domains, refs, "r", (theirs) => {
        strictEqual(theirs.bytes[0], 1);
        ok(!isWritable(theirs));
      });
    }),

  "a bad reference fails at map time, and with it the whole mapping": (domains) =>
    withShare(domains, 2, "rw", (_ours, refs) => {
      const [first, second] = refs as [GrantRef, GrantRef];
      failsWithIo(() => withMap(domains, [NOT_A_GREF as GrantRef], "rw", () => {}));
      failsWithIo(() => withMap(domains, [first, NOT_A_GREF as GrantRef, second], "rw", () => {}));
      failsWithIo(() => withMap(domains, [], "rw", () => {}));
    }),

  "a revoked grant fails at map time": (domains) => {
    let revoked: readonly GrantRef[] = [];
    withShare(domains, 2, "rw", (_ours, refs) => void (revoked = refs));
    failsWithIo(() => withMap(domains, revoked, "rw", () => {}));
  },

  "a page that is unshared while mapped stays the peer's until it lets go": (domains) =>
    using(domains.front.openGrantShare(), (share) => {
      const first = share.share(domains.back.domid, 1, "rw");
      first.mapping.bytes.fill(0x5a);
      withMap(domains, first.refs, "rw", (theirs) => {
        first.mapping.close();
        const second = share.share(domains.back.domid, 8, "rw");
        using(second.mapping, () => {
          ok(!second.refs.includes(first.refs[0]), "the reference was used again");
          second.mapping.bytes.fill(0xa5);
          ok(theirs.bytes.every((byte) => byte === 0x5a));
        });
      });
    }),

  "a mapping outlives the handle it was made with": (domains) =>
    withShare(domains, 1, "rw", (ours, refs) => {
      const table = domains.back.openGrantTable();
      const theirs = table.map(domains.front.domid, refs, "rw");
      table.close();
      using(theirs, () => {
        ours.bytes[0] = 9;
        strictEqual(theirs.bytes[0], 9);
      });
    }),

  "sharing nothing fails": (domains) => failsWithIo(() => withShare(domains, 0, "rw", () => {})),
};

const COPY_CASES: Record<string, PlatformCase> = {
  "a batch copies both ways, at any offset": (domains) =>
    withShare(domains, 2, "rw", (ours, refs) => {
      const [first, second] = refs as [GrantRef, GrantRef];
      ours.bytes.set([1, 2, 3, 4], 100);
      const statuses = copy(domains, (batch, local) => {
        local.bytes.set([9, 8, 7], 5000);
        batch.fromGrant(domains.front.domid, first, 100, 4, local.address + 10);
        batch.toGrant(domains.front.domid, second, PAGE_SIZE - 3, 3, local.address + 5000);
      });
      deepStrictEqual(statuses, [0, 0]);
      deepStrictEqual(Array.from(ours.bytes.subarray(2 * PAGE_SIZE - 3)), [9, 8, 7]);
      strictEqual(ours.bytes[2 * PAGE_SIZE - 4], 0);
    }),

  "a copy from a grant arrives": (domains) =>
    withShare(domains, 1, "r", (ours, refs) => {
      const pattern = Uint8Array.from({ length: PAGE_SIZE }, (_, i) => i * 7);
      ours.bytes.set(pattern);
      using(domains.back.openGrantTable(), (table) =>
        using(allocateMemory(PAGE_SIZE), (local) =>
          using(new GrantCopyBatch(1), (batch) => {
            batch.fromGrant(domains.front.domid, refs[0], 0, PAGE_SIZE, local.address);
            strictEqual(table.copy(batch), 0);
            strictEqual(batch.status(0), 0);
            deepStrictEqual(local.bytes, pattern);
          }),
        ),
      );
    }),

  "a bad reference fails its segment alone": (domains) =>
    withShare(domains, 1, "rw", (ours, refs) => {
      const statuses = copy(domains, (batch, local) => {
        local.bytes.fill(3);
        batch.toGrant(domains.front.domid, NOT_A_GREF, 0, 16, local.address);
        batch.toGrant(domains.front.domid, refs[0], 0, 16, local.address);
        batch.toGrant(domains.front.domid, NOT_A_GREF, 0, 16, local.address);
      }) as number[];
      ok(statuses[0] < 0);
      strictEqual(statuses[1], 0);
      ok(statuses[2] < 0);
      strictEqual(ours.bytes[15], 3);
      strictEqual(ours.bytes[16], 0);
    }),

  "a grant for reading refuses being written": (domains) =>
    withShare(domains, 1, "r", (ours, refs) => {
      const statuses = copy(domains, (batch, local) => {
        local.bytes.fill(3);
        batch.toGrant(domains.front.domid, refs[0], 0, 16, local.address);
        batch.fromGrant(domains.front.domid, refs[0], 0, 16, local.address);
      }) as number[];
      ok(statuses[0] < 0);
      strictEqual(statuses[1], 0);
      strictEqual(ours.bytes[0], 0);
    }),

  "a revoked grant refuses": (domains) => {
    let revoked = 0;
    withShare(domains, 1, "rw", (_ours, refs) => void (revoked = refs[0] as number));
    const statuses = copy(domains, (batch, local) =>
      batch.fromGrant(domains.front.domid, revoked, 0, 16, local.address),
    ) as number[];
    ok(statuses[0] < 0);
  },

  "a segment that crosses its page fails the whole call": (domains) =>
    withShare(domains, 1, "rw", (_ours, refs) => {
      const result = copy(domains, (batch, local) => {
        batch.fromGrant(domains.front.domid, refs[0], PAGE_SIZE - 8, 16, local.address);
      });
      ok(typeof result === "number" && result < 0);
    }),

  "a whole page may be copied, and nothing at all": (domains) =>
    withShare(domains, 1, "rw", (_ours, refs) => {
      const ref = refs[0];
      const statuses = copy(domains, (batch, local) => {
        batch.toGrant(domains.front.domid, ref, 0, PAGE_SIZE, local.address);
        batch.toGrant(domains.front.domid, ref, PAGE_SIZE, 0, local.address);
      });
      deepStrictEqual(statuses, [0, 0]);
    }),

  "an empty batch is no error": (domains) =>
    deepStrictEqual(
      copy(domains, () => {}),
      [],
    ),
};

const NOTIFY_CASES: Record<string, PlatformCase> = {
  "unmapping clears the byte and sends the event": (domains) =>
    connected(domains, ({ front, frontPort, backPort }) =>
      withShare(domains, 2, "rw", (ours, refs) => {
        ours.bytes.fill(0xff);
        const notify = { clearByteAt: PAGE_SIZE + 20, port: backPort };
        withMap(domains, refs, "rw", () => expectNoEvent(front), notify);
        deepStrictEqual(takeEvents(front), [frontPort]);
        strictEqual(ours.bytes[PAGE_SIZE + 20], 0);
        strictEqual(ours.bytes.filter((byte) => byte !== 0xff).length, 1);
      }),
    ),

  "unsharing clears the byte in the peer's mapping and sends the event": (domains) =>
    connected(domains, ({ back, frontPort, backPort }) =>
      using(domains.front.openGrantShare(), (share) => {
        const notify = { clearByteAt: 21, port: frontPort };
        const { mapping, refs } = share.share(domains.back.domid, 1, "rw", notify);
        mapping.bytes.fill(0xff);
        withMap(domains, refs, "rw", (theirs) => {
          mapping.close();
          deepStrictEqual(takeEvents(back), [backPort]);
          strictEqual(theirs.bytes[21], 0);
          strictEqual(theirs.bytes[20], 0xff);
        });
      }),
    ),

  "the event comes though the channel was closed first": (domains) =>
    using(domains.front.openEventChannels(), (front) =>
      withShare(domains, 1, "rw", (ours, refs) => {
        ours.bytes[0] = 1;
        const port = front.bindUnbound(domains.back.domid);
        const back = domains.back.openEventChannels();
        const bound = back.bindInterdomain(domains.front.domid, port);
        const notify = { clearByteAt: 0, port: bound };
        withMap(domains, refs, "rw", () => (back.close(), expectNoEvent(front)), notify);
        deepStrictEqual(takeEvents(front), [port]);
        strictEqual(ours.bytes[0], 0);
      }),
    ),

  "a byte alone, or an event alone": (domains) =>
    connected(domains, ({ front, frontPort, backPort }) =>
      withShare(domains, 1, "rw", (ours, refs) => {
        ours.bytes.fill(1);
        withMap(domains, refs, "rw", () => {}, { clearByteAt: 3 });
        strictEqual(ours.bytes[3], 0);
        expectNoEvent(front);
        ours.bytes.fill(1);
        withMap(domains, refs, "rw", () => {}, { port: backPort });
        ok(ours.bytes.every((byte) => byte === 1));
        deepStrictEqual(takeEvents(front), [frontPort]);
      }),
    ),

  "a mapping for reading has no byte to clear": (domains) =>
    withShare(domains, 1, "rw", (_ours, refs) =>
      failsWithIo(() => withMap(domains, refs, "r", () => {}, { clearByteAt: 0 })),
    ),

  "a notify beyond the mapping, or over someone else's port, is refused": (domains) =>
    withShare(domains, 1, "rw", (_ours, refs) => {
      failsWithIo(() => withMap(domains, refs, "rw", () => {}, { clearByteAt: PAGE_SIZE }));
      failsWithIo(() => withMap(domains, refs, "rw", () => {}, { port: 999 as EvtchnPort }));
    }),
};

/** Every case by name. Each leaves nothing behind, which its caller checks. */
export const PLATFORM_CASES: Readonly<Record<string, PlatformCase>> = {
  ...EVENT_CASES,
  ...GRANT_CASES,
  ...COPY_CASES,
  ...NOTIFY_CASES,
};
