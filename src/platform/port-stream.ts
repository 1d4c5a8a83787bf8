// Events on the main thread: reads the ports that a handle delivers, without blocking and without another thread. Data
// planes do not use this; they wait in their workers.
import type { EvtchnPort } from "../core/types.ts";
import type { EventChannels } from "./platform.ts";

interface ChunkReader {
  read(): Promise<{ done: boolean; value?: Uint8Array<ArrayBuffer> | undefined }>;
  cancel(): Promise<void>;
}

export class PortStream {
  readonly #reader: ChunkReader;
  readonly #finished: Promise<void>;

  /**
   * Runs `onPort` for each port that `channels` delivers. The port is unmasked before, so an event that arrives
   * meanwhile is delivered again. `onPort` must not throw, and nobody else may read the handle. Close this before the
   * handle.
   */
  constructor(channels: EventChannels, onPort: (port: EvtchnPort) => void) {
    this.#reader = Bun.file(channels.fd).stream().getReader();
    this.#finished = this.#run(channels, onPort);
  }

  async close(): Promise<void> {
    await this.#reader.cancel();
    await this.#finished;
  }

  async #run(channels: EventChannels, onPort: (port: EvtchnPort) => void): Promise<void> {
    for (;;) {
      const { done, value } = await this.#reader.read();
      if (done || value === undefined) return;
      for (const port of wholeWords(value)) {
        channels.unmask(port as EvtchnPort);
        onPort(port as EvtchnPort);
      }
    }
  }
}

/** The handle delivers whole ports, but the chunk may lie anywhere in its buffer. */
function wholeWords(chunk: Uint8Array): Uint32Array {
  return new Uint32Array(chunk.slice().buffer, 0, chunk.length >> 2);
}
