// What a device does next: a pure function of what both ends say and what is. It is asked again after every change,
// so each answer must be safe to carry out twice.
import { XenbusState } from "../protocol/xenbus.ts";

/** Why a device is served no longer: the guest or the toolstack let go, the guest is gone, or we left it. */
export type DeviceEnd = "closed" | "removed" | "frontend-gone" | "abandoned";

export interface Seen {
  /** The backend's directory is gone. */
  readonly removed: boolean;
  readonly frontend: XenbusState;
  /** The toolstack wants the device to stay after the guest has let go. */
  readonly online: boolean;
  /** What the backend says. */
  readonly own: XenbusState;
  /** A data plane serves a ring. */
  readonly serving: boolean;
  /** Since the ring that is served, was refused or is to be taken over, the frontend has offered one: `offersAnew`. */
  readonly anew: boolean;
  /** The ring that the frontend offered was refused. */
  readonly refused: boolean;
  /** The ring was another server's and is in use: we continue with it, whatever state that server was in. */
  readonly takeover: boolean;
}

export interface Step {
  /**
   * What becomes of the ring first. `drop`: nobody goes on there. `connect`: the one on offer is served,
   * instead of one that is.
   */
  readonly ring: "keep" | "drop" | "connect";
  /** What the backend says after that. */
  readonly say: XenbusState;
  /** Set when the device is over. */
  readonly end?: DeviceEnd;
}

const { Unknown, Initialising, InitWait, Initialised, Connected, Closing, Closed } = XenbusState;

export function decide(seen: Seen): Step {
  const { own, online, frontend } = seen;
  if (seen.removed) return { ring: "drop", say: own, end: "removed" };
  switch (frontend) {
    case Unknown:
      return { ring: "drop", say: Closed, end: "frontend-gone" };
    case Initialising:
      if (online) return { ring: "drop", say: InitWait };
      return { ring: "drop", say: Closed, end: "closed" };
    case Initialised:
    case Connected:
      return decideAboutRing(seen);
    case Closing:
      return decideWhileClosing(seen);
    case Closed:
      if (online) return { ring: "drop", say: Closed };
      return { ring: "drop", say: Closed, end: "closed" };
    default:
      return { ring: "keep", say: own };
  }
}

/**
 * The frontend has offered a ring. Not every frontend passes through Initialising before it offers the next one:
 * Amazon's comes back from hibernation at Closed, Linux from s2idle while both ends are Connected.
 */
function decideAboutRing({ own, online, serving, anew, refused, takeover }: Seen): Step {
  // A device that is to go says so, and is offered to nobody: the guest reads Closing, and lets go.
  const say = online ? own : Closing;
  if (!anew && (serving || refused)) return { ring: "keep", say };
  if (!anew && takeover) return { ring: "connect", say };
  if (!online) return { ring: "drop", say };
  return { ring: "connect", say: Connected };
}

/**
 * A guest that says Closing may go on with its ring: Linux before 5.15 answers hot-unplug of a mounted disk so, until
 * it is unmounted. Only Closed means that it has let go.
 */
function decideWhileClosing({ own, serving, anew, takeover }: Seen): Step {
  if (own === Closed) return { ring: "keep", say: Closed };
  return { ring: takeover && !serving && !anew ? "connect" : "keep", say: Closing };
}

/** Whether a frontend that was at `before` and is at `now` has offered a ring in between. */
export function offersAnew(before: XenbusState, now: XenbusState): boolean {
  const isFirst = before !== Initialised && before !== Connected;
  return (now === Connected && isFirst) || (now === Initialised && before !== Initialised);
}

/** Whether a guest may go on with a ring that a server has connected to: until it says Closed. */
export function isInUse(backend: XenbusState, frontend: XenbusState): boolean {
  const both = [backend, frontend];
  return both.every((state) => state === Connected || state === Closing);
}
