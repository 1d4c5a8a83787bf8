// Stops a relay from another thread, as a signal does: a relay that hangs blocks the thread of its test.
import { VchanControl, type ControlHandle } from "../../src/vchan/control.ts";

declare const self: Worker;

self.onmessage = ({ data }: MessageEvent<{ handle: ControlHandle; afterMs: number }>) => {
  setTimeout(() => new VchanControl(data.handle).stop(), data.afterMs);
};
