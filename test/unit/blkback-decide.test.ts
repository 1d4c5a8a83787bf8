// What a device does next: every combination of what can be seen, every way of a device through its states with a model
// of what is carried out, and the cases that have a name.
import { describe, expect, test } from "bun:test";
import { decide, isInUse, offersAnew, type Seen, type Step } from "../../src/blkback/device/decide.ts";
import { XenbusState } from "../../src/protocol/xenbus.ts";

const { Unknown, Initialising, InitWait, Initialised, Connected, Closing, Closed } = XenbusState;
const STATES = Object.values(XenbusState);
const OWN = [Initialising, InitWait, Connected, Closing, Closed];
const BOTH = [false, true];
const offersRing = (frontend: XenbusState): boolean => frontend === Initialised || frontend === Connected;
/** A guest that says Closing may use its ring until it says Closed. */
const mayUseRing = ({ frontend, own, removed }: Seen): boolean =>
  !removed && (offersRing(frontend) || (frontend === Closing && own !== Closed));

function everything(): Seen[] {
  return OWN.flatMap((own) =>
    STATES.flatMap((frontend) =>
      Array.from({ length: 64 }, (_, bits) => ({
        own,
        frontend,
        removed: (bits & 1) !== 0,
        online: (bits & 2) !== 0,
        serving: (bits & 4) !== 0,
        anew: (bits & 8) !== 0,
        refused: (bits & 16) !== 0,
        takeover: (bits & 32) !== 0,
      })),
    ),
  );
}

/** What `seen` and `step` violate, by name. */
function violations(seen: Seen, step: Step): string[] {
  const { own, frontend, removed, online, serving, anew, refused, takeover } = seen;
  const connects = step.ring === "connect";
  const hasLetGo = removed || frontend === Unknown || frontend === Initialising || frontend === Closed;
  const rules: Readonly<Record<string, boolean>> = {
    "a removed device is over, and nothing is said there":
      !removed || (step.end === "removed" && step.say === own),
    "nobody goes on with a ring that the guest has let go of": !hasLetGo || step.ring === "drop",
    "nor with an older one than it offers": !(offersRing(frontend) && anew) || step.ring !== "keep",
    "a guest that starts over is offered the device":
      removed || frontend !== Initialising || !online || (step.say === InitWait && step.end === undefined),
    "a ring is connected to when one is offered, or in use still":
      !connects || (mayUseRing(seen) && (frontend !== Closing || (takeover && !serving && !anew))),
    "a device that is to go is not offered, but a ring in use is served to its end":
      online || !connects || (takeover && !anew && step.say === Closing),
    "a refused ring is left alone": !(refused && !anew && offersRing(frontend)) || !connects,
    "a ring that is served stays, unless another is offered":
      !(serving && !anew && offersRing(frontend) && !removed) || step.ring === "keep",
    "another server's ring is served, and what that one waited for is waited for":
      !(takeover && !anew && !serving && !refused && mayUseRing(seen)) ||
      (connects && step.say === (online && frontend !== Closing ? own : Closing)),
    "Closed is said when the ring is dropped, and not before":
      step.say !== Closed || own === Closed || step.ring === "drop",
    "Connected is said with a ring": step.say !== Connected || own === Connected || connects,
    "what is over has no ring": step.end === undefined || step.ring === "drop",
    "a device ends when it is removed, its guest is gone, or both let go":
      (step.end !== undefined) ===
      (removed || frontend === Unknown || (!online && (frontend === Initialising || frontend === Closed))),
  };
  return Object.keys(rules).filter((rule) => rules[rule] === false);
}

test("every combination keeps the rules", () => {
  const wrong = everything().flatMap((seen) => {
    const step = decide(seen);
    return violations(seen, step).map(
      (rule) => `${rule}: ${JSON.stringify(seen)} -> ${JSON.stringify(step)}`,
    );
  });
  expect(wrong).toEqual([]);
});

/** `seen` after its step was carried out; `connects`: the ring is a good one. */
function after(seen: Seen, step: Step, connects: boolean): Seen {
  if (step.ring === "keep") return { ...seen, own: step.say };
  if (step.ring === "drop")
    return { ...seen, own: step.say, serving: false, refused: false, takeover: false };
  if (!connects) return { ...seen, own: Closing, serving: false, refused: true, anew: false };
  return { ...seen, own: step.say, serving: true, refused: false, takeover: false, anew: false };
}

/** Takes steps until nothing changes, which must be soon. */
function settle(seen: Seen, connects = true): { seen: Seen; end: Step["end"] } {
  let now = seen;
  for (let steps = 0; steps < 3; steps++) {
    const step = decide(now);
    const next = after(now, step, connects);
    if (step.end !== undefined) return { seen: next, end: step.end };
    if (JSON.stringify(next) === JSON.stringify(now)) return { seen: now, end: undefined };
    now = next;
  }
  throw new Error(`never settles: ${JSON.stringify(seen)}`);
}

function says(seen: Seen, frontend: XenbusState): Seen {
  return { ...seen, frontend, anew: seen.anew || offersAnew(seen.frontend, frontend) };
}

/** Everything that can happen to a device: what either end and the toolstack may do next. */
function happenings(seen: Seen): Seen[] {
  const asked = seen.own === Closed ? Closed : Closing;
  return [
    ...STATES.map((frontend) => says(seen, frontend)),
    ...BOTH.map((online) => ({ ...seen, online })),
    { ...seen, anew: true },
    { ...seen, online: false, own: asked },
    { ...seen, own: asked },
    { ...seen, removed: true },
    ...(seen.serving
      ? [
          { ...seen, serving: false, refused: true, own: Closing },
          { ...seen, serving: false, takeover: true },
        ]
      : []),
  ];
}

const born: Seen = {
  own: InitWait,
  frontend: Initialising,
  removed: false,
  online: true,
  serving: false,
  anew: false,
  refused: false,
  takeover: false,
};

describe("every way through the states", () => {
  const left = { ...born, own: Connected, frontend: Connected, takeover: true };
  const seeds = [born, left, { ...left, own: Closing, online: false }, { ...left, frontend: Closing }];
  const reached = new Map(seeds.map((seen) => [JSON.stringify(seen), seen]));
  for (const seen of reached.values())
    for (const next of happenings(seen))
      for (const connects of BOTH) {
        const { seen: settled, end } = settle(next, connects);
        if (end === undefined) reached.set(JSON.stringify(settled), settled);
      }
  const all = [...reached.values()];

  test("settles, and is known as a whole", () => {
    expect(all.length).toBeGreaterThan(50);
    const odd = all.filter(
      ({ own, serving, refused, takeover }) =>
        (serving && (refused || (own !== Connected && own !== Closing))) ||
        (refused && own !== Closing) ||
        (own === Connected && !serving && !takeover),
    );
    expect(odd).toEqual([]);
  });

  test("leads back to a disk as soon as the guest offers a ring, however it begins", () => {
    const ways = [
      [Initialising, Initialised],
      [Initialising, Connected],
      [Closed, Initialised],
      [Closed, Connected],
    ];
    for (const seen of all.filter(({ online }) => online))
      for (const way of ways) {
        const { seen: last, end } = way.reduce(
          (now, frontend) => settle(says(now.seen, frontend)),
          settle(seen),
        );
        expect([way, seen, end, last.own, last.serving]).toEqual([way, seen, undefined, Connected, true]);
      }
  });

  test("leads back to a disk when keys are written anew, whatever was seen of the states between", () => {
    for (const seen of all.filter(({ online }) => online))
      for (const frontend of [Initialised, Connected]) {
        const { seen: last } = settle({ ...seen, frontend, anew: true });
        expect([seen, last.own, last.serving]).toEqual([seen, Connected, true]);
      }
  });

  test("ends when the guest lets go of a device that is to go", () => {
    for (const seen of all) expect(settle(says({ ...seen, online: false }, Closed)).end).toBe("closed");
  });
});

describe("by name", () => {
  const serving: Seen = { ...born, own: Connected, frontend: Connected, serving: true };
  const keep = { ring: "keep", say: Connected } as const;
  const cases: readonly (readonly [string, Seen, Step])[] = [
    ["a guest that has not begun is waited for", born, { ring: "drop", say: InitWait }],
    ["Linux offers a ring", { ...born, frontend: Initialised }, { ring: "connect", say: Connected }],
    ["mini-os says Connected at once", { ...born, frontend: Connected }, { ring: "connect", say: Connected }],
    ["both are Connected", serving, keep],
    ["the guest has not said Connected yet", { ...serving, frontend: Initialised }, keep],
    ["s2idle: another ring while Connected", { ...serving, anew: true }, { ring: "connect", say: Connected }],
    [
      "Amazon after hibernation: Closed, then Initialised",
      { ...born, own: Closed, frontend: Initialised },
      { ring: "connect", say: Connected },
    ],
    ["a guest closes", { ...serving, frontend: Closing }, { ring: "keep", say: Closing }],
    ["a guest has closed", { ...serving, own: Closing, frontend: Closed }, { ring: "drop", say: Closed }],
    [
      "hot-unplug: the guest is waited for",
      { ...serving, online: false, own: Closing },
      { ring: "keep", say: Closing },
    ],
    [
      "hot-unplug, our Connected came after the toolstack's word",
      { ...serving, online: false },
      { ring: "keep", say: Closing },
    ],
    [
      "hot-unplug: the guest lets go",
      { ...serving, online: false, own: Closing, frontend: Closed },
      { ring: "drop", say: Closed, end: "closed" },
    ],
    [
      "hot-unplug: the guest offers another ring instead",
      { ...serving, online: false, own: Closing, anew: true },
      { ring: "drop", say: Closing },
    ],
    [
      "a refused ring",
      { ...born, own: Closing, frontend: Connected, refused: true },
      { ring: "keep", say: Closing },
    ],
    [
      "another ring after a refused one",
      { ...born, own: Closing, frontend: Initialised, refused: true, anew: true },
      { ring: "connect", say: Connected },
    ],
    [
      "the last server died",
      { ...serving, serving: false, takeover: true },
      { ring: "connect", say: Connected },
    ],
    [
      "the last server died while it waited for the guest to let go",
      { ...serving, serving: false, takeover: true, own: Closing, online: false },
      { ring: "connect", say: Closing },
    ],
    [
      "the last server died, and the guest says Closing, but may go on",
      { ...serving, serving: false, takeover: true, own: Closing, frontend: Closing, online: false },
      { ring: "connect", say: Closing },
    ],
    [
      "the last server died, and the guest offers another ring",
      { ...serving, serving: false, takeover: true, anew: true },
      { ring: "connect", say: Connected },
    ],
    [
      "the guest is gone",
      { ...serving, frontend: Unknown },
      { ring: "drop", say: Closed, end: "frontend-gone" },
    ],
    [
      "the toolstack has removed the device",
      { ...serving, removed: true },
      { ring: "drop", say: Connected, end: "removed" },
    ],
  ];
  test.each(cases)("%s", (_name, seen, step) => {
    expect(decide(seen)).toEqual(step);
  });

  test.each([
    [Initialising, Initialised, true],
    [Initialising, Connected, true],
    [Initialised, Connected, false],
    [Connected, Initialised, true],
    [Connected, Connected, false],
    [Initialised, Initialised, false],
    [Closing, Connected, true],
    [Closed, Initialised, true],
    [Connected, Closing, false],
  ] as const)("a frontend that was at %d and is at %d has offered another ring: %p", (before, now, is) => {
    expect(offersAnew(before, now)).toBe(is);
  });

  test("a ring is in use when a server was Connected to it, until the guest says Closed", () => {
    const used = OWN.flatMap((own) => STATES.map((frontend) => [own, frontend] as const)).filter(
      ([own, frontend]) => isInUse(own, frontend),
    );
    expect(used).toEqual([
      [Connected, Connected],
      [Connected, Closing],
      [Closing, Connected],
      [Closing, Closing],
    ]);
  });
});
