// What a device does next: a pure function of the states of both ends and of our own. It is called after every
// change, so each step it returns must be safe to carry out twice.
import { XenbusState } from "../../protocol/xenbus.ts";

/** Why a device is no longer served: the guest or the toolstack let go, the guest is gone, or we left it. */
export type DeviceEnd = "closed" | "removed" | "frontend-gone" | "abandoned";

export interface Seen {
  /** The backend's directory is gone. */
  readonly removed: boolean;
  readonly frontend: XenbusState;
  /** The toolstack wants the device to stay after the guest has let go. */
  readonly online: boolean;
  /** The state that the backend has written. */
  readonly own: XenbusState;
  /** Whether a data plane serves a ring. */
  readonly serving: boolean;
  /**
   * Whether the frontend has offered a ring (see `offersAnew`) since the one that is served, refused or to be taken
   * over.
   */
  readonly anew: boolean;
  /** The ring that the frontend offered was refused. */
  readonly refused: boolean;
  /** The ring is in use and belonged to another server: we continue with it, whatever state that server was in. */
  readonly takeover: boolean;
}

export interface Step {
  /**
   * What happens to the ring first. `drop`: no server continues on it. `connect`: the ring on offer is served,
   * replacing the current one if there is one.
   */
  readonly ring: "keep" | "drop" | "connect";
  /** The state that the backend writes after that. */
  readonly say: XenbusState;
  /** Set when the device has ended. */
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
 * Amazon's comes back from hibernation at Closed, and Linux from s2idle while both ends are Connected.
 */
function decideAboutRing({ own, online, serving, anew, refused, takeover }: Seen): Step {
  // A device that is to go enters Closing and is offered to nobody: the guest reads Closing and lets go.
  const say = online ? own : Closing;
  if (!anew && (serving || refused)) return { ring: "keep", say };
  if (!anew && takeover) return { ring: "connect", say };
  if (!online) return { ring: "drop", say };
  return { ring: "connect", say: Connected };
}

/**
 * A guest in state Closing may still use its ring: Linux before 5.15 answers the hot-unplug of a mounted disk that
 * way until it is unmounted. Only Closed means that the guest has let go.
 */
function decideWhileClosing({ own, serving, anew, takeover }: Seen): Step {
  if (own === Closed) return { ring: "keep", say: Closed };
  return { ring: takeover && !serving && !anew ? "connect" : "keep", say: Closing };
}

/** Whether a frontend that went from state `before` to `now` has offered a ring in between. */
export function offersAnew(before: XenbusState, now: XenbusState): boolean {
  const isFirst = before !== Initialised && before !== Connected;
  return (now === Connected && isFirst) || (now === Initialised && before !== Initialised);
}

/** Whether a guest may still use a ring that a server has connected to. It may until its state is Closed. */
export function isInUse(backend: XenbusState, frontend: XenbusState): boolean {
  const both = [backend, frontend];
  return both.every((state) => state === Connected || state === Closing);
}
