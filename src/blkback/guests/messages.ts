// What `watch` and the process of a guest say to each other: lines of JSON, orders on its stdin and reports on its
// stdout. The process handles what a hostile guest sends, so its reports are checked like the words of a stranger.
import type { PlatformDescriptor } from "../../platform/platform.ts";
import type { Domid } from "../../core/types.ts";
import type { Image } from "../../block/image.ts";
import type { JailUser } from "../../native/jail.ts";
import type { FailureMessage } from "../../plane/protocol.ts";
import type { DeviceEvent } from "../device/device-events.ts";
import type { JailMode } from "../../platform/jail.ts";
import type { WatchOptions } from "../watch/watch.ts";

/** What a process serves its guest with: everything in it survives JSON. */
export interface GuestSettings extends Omit<WatchOptions, "onEvent" | "onCount" | "frontend" | "jailed"> {
  readonly platform: PlatformDescriptor;
  readonly frontend: Domid;
  readonly jail: JailMode;
  /** False: it connects to xenstore by itself. */
  readonly isRelayed: boolean;
  /** The user that it becomes in its jail; without it, it stays who we are. */
  readonly user?: JailUser | undefined;
}

export type GuestOrder =
  /** The first order: load what is needed, and touch nothing yet. */
  | { readonly order: "prepare"; readonly settings: GuestSettings }
  | { readonly order: "serve" }
  /** To be answered if every plane is alive. */
  | { readonly order: "alive" }
  /** Leave the disks to the next server, and end. The end of stdin is the same order. */
  | { readonly order: "end" }
  | ({ readonly order: "answer" } & Answer)
  | ({ readonly order: "trouble" } & Trouble);

const ASKED = ["lock", "image", "connection", "anew", "close", "unlock", "channels"] as const;

/** What the process cannot have by itself. */
export interface Ask {
  readonly ask: number;
  /**
   * To lock a device, to open its image, to connect to the server that has it, or anew (see `Dial`), to close it, to
   * unlock the device; event channels for its rings.
   */
  readonly what: (typeof ASKED)[number];
  readonly devid: number;
}

/** An answer; there is one even if its question was about something that is closed by now. */
export interface Answer {
  /** The number of the question. */
  readonly ask: number;
  /** How many come under that number through the socket for descriptors. They are there already. */
  readonly descriptors: number;
  readonly failure?: FailureMessage;
  /** Its descriptors are to be replaced. */
  readonly image?: Image;
  /** Why there is no connection. */
  readonly errno?: number;
}

/** What keeps the program that serves a device's image from doing so; null: nothing any more. */
export interface Trouble {
  readonly devid: number;
  readonly why: string | null;
}

export type GuestReport =
  | { readonly report: "alive" }
  /** It could serve at once. */
  | { readonly report: "prepared" }
  /** Each disk that it found when it began is served, or has a reason not to be. */
  | { readonly report: "settled" }
  /** It serves nothing any more, and nothing of its disks is locked. */
  | { readonly report: "left" }
  /** How many disks it serves or is about to serve. */
  | { readonly report: "disks"; readonly count: number }
  | ({ readonly report: "ask" } & Ask)
  | { readonly report: "event"; readonly devid: number; readonly event: DeviceEvent };

/** Longest line; a report has less than a tenth of it. */
const LINE_BYTES_MAX = 1 << 16;

export function encodeLine(message: GuestOrder | GuestReport): string {
  return `${JSON.stringify(message)}\n`;
}

/** The lines of `stream`. Throws when one is too long. */
export async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    if (rest.length > LINE_BYTES_MAX) throw new RangeError("a line that does not end");
    yield* lines;
  }
}

/** The order in a line that `watch` wrote. */
export function parseOrder(line: string): GuestOrder {
  return JSON.parse(line) as GuestOrder;
}

/** The report in a line, or undefined if it is none. */
export function parseReport(line: string): GuestReport | undefined {
  const fields = parseObject(line) ?? {};
  const { report } = fields;
  switch (report) {
    case "alive":
    case "prepared":
    case "settled":
    case "left":
      return { report };
    case "disks": {
      const { count } = fields;
      return isCount(count) ? { report: "disks", count } : undefined;
    }
    case "ask": {
      const { ask, devid } = fields;
      const what = ASKED.find((it) => it === fields["what"]);
      return isCount(ask) && what !== undefined && isCount(devid) ? { report, ask, what, devid } : undefined;
    }
    case "event": {
      const { devid } = fields;
      const event = eventIn(fields["event"]);
      return isCount(devid) && event !== undefined ? { report: "event", devid, event } : undefined;
    }
    default:
      return undefined;
  }
}

function parseObject(line: string): Readonly<Record<string, unknown>> | undefined {
  try {
    return asObject(JSON.parse(line));
  } catch {
    return undefined;
  }
}

function asObject(value: unknown): Readonly<Record<string, unknown>> | undefined {
  return typeof value === "object" && value !== null ? { ...value } : undefined;
}

function eventIn(value: unknown): DeviceEvent | undefined {
  const fields = asObject(value);
  const event = fields?.["event"];
  switch (event) {
    case "waiting":
    case "connected":
    case "closing":
    case "released":
      return { event };
    case "resized": {
      const { before, after } = fields ?? {};
      return isCount(before) && (after === null || isCount(after)) ? { event, before, after } : undefined;
    }
    default:
      return undefined;
  }
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && Number(value) >= 0;
}
