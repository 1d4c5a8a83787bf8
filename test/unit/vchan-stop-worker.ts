// Stops a relay from another thread, as a signal does: a relay that hangs blocks the thread of its test.
import { ControlPage, type ControlHandle } from "../../src/plane/control-page.ts";
import { VchanControl } from "../../src/vchan/vchan-control.ts";

declare const self: Worker;

self.onmessage = ({ data }: MessageEvent<{ handle: ControlHandle; afterMs: number }>) => {
  setTimeout(() => new VchanControl(new ControlPage(data.handle)).stop(), data.afterMs);
};
