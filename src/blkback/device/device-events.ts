// What becomes of a device, for people: one event for each change that a guest or an administrator would notice.
import { XenbusState } from "../../protocol/xenbus.ts";
import type { DeviceAddress } from "../address.ts";
import { describeResize, type Resize } from "./resize.ts";

export type DeviceEvent =
  /** `released`: the guest has let go. `closing`: it is asked to. */
  | { readonly event: "waiting" | "connected" | "closing" | "released" }
  | ({ readonly event: "resized" } & Resize);

export type OnDeviceEvent = (address: DeviceAddress, event: DeviceEvent) => void;

const WORDS = {
  waiting: "waiting for the guest",
  connected: "the guest is connected",
  closing: "asking the guest to let go",
  released: "the guest has let go",
} as const;

export function describeEvent(event: DeviceEvent): { readonly text: string; readonly warns: boolean } {
  return event.event === "resized" ? describeResize(event) : { text: WORDS[event.event], warns: false };
}

/** The events of one device. States repeat, and some mean nothing to a guest that has never connected. */
export class DeviceEvents {
  readonly #tell: (event: DeviceEvent) => void;
  #last: DeviceEvent["event"] | undefined;

  constructor(address: DeviceAddress, onEvent: OnDeviceEvent = () => {}) {
    this.#tell = (event) => onEvent(address, event);
  }

  /** The backend is in `state` now. `asked`: if that is Closing, it is not the guest that began to close. */
  entered(state: XenbusState, asked: boolean): void {
    const before = this.#last;
    if (state === XenbusState.InitWait) this.#change("waiting");
    else if (state === XenbusState.Connected) this.#change("connected");
    else if (state === XenbusState.Closing && asked && before === "connected") this.#change("closing");
    else if (state === XenbusState.Closed && (before === "connected" || before === "closing"))
      this.#change("released");
  }

  resized(resize: Resize): void {
    this.#tell({ event: "resized", ...resize });
  }

  #change(event: keyof typeof WORDS): void {
    if (event === this.#last) return;
    this.#last = event;
    this.#tell({ event });
  }
}
