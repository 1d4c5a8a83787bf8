// The data plane's buffers: one aligned region, handed out in runs of pages. When it is full, requests just wait. In
// large pages a request of 1 MiB is one piece for the image's disk instead of 256, each of which costs it time.
import { PAGE_SIZE } from "../../../core/types.ts";
import { allocateDataMemory, type Mapping } from "../../../native/memory.ts";
import { PageRuns } from "../../../native/page-runs.ts";

export class BufferPool extends PageRuns {
  readonly memory: Mapping;

  constructor(sizeBytes: number) {
    const memory = allocateDataMemory(sizeBytes);
    super(memory.sizeBytes / PAGE_SIZE);
    this.memory = memory;
  }

  addressOf(page: number): number {
    return this.memory.address + page * PAGE_SIZE;
  }

  close(): void {
    this.memory.close();
  }
}
