// A guest's other processor: writes to words of shared memory as fast as it can, one of several values each time, while
// the backend of the same test works on them.
import { Mapping } from "../../src/native/memory.ts";

declare const self: Worker;

export interface Scribble {
  /** Memory of this process. */
  readonly address: number;
  readonly bytes: number;
  readonly spots: readonly { readonly word: number; readonly values: readonly number[] }[];
  /** Int32: set the first to 1 to end it; the second counts rounds. */
  readonly control: SharedArrayBuffer;
}

self.onmessage = ({ data }: MessageEvent<Scribble>) => {
  const memory = new Mapping(data.address, data.bytes, () => {});
  const control = new Int32Array(data.control);
  let random = 1;
  while (Atomics.load(control, 0) === 0) {
    for (const { word, values } of data.spots) {
      random = (Math.imul(random, 1_103_515_245) + 12_345) >>> 0;
      Atomics.store(memory.words, word, values[(random >>> 16) % values.length]);
    }
    Atomics.add(control, 1, 1);
  }
  memory.close();
  self.postMessage("ended");
};
