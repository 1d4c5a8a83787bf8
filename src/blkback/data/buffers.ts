// The data plane's buffers: one aligned region, handed out in runs of pages. When it is full, requests just wait.
import { PAGE_SIZE } from "../../core/types.ts";
import { allocateMemory, type Mapping } from "../../native/memory.ts";
import { PageRuns } from "../../native/page-runs.ts";

export class BufferPool extends PageRuns {
  readonly memory: Mapping;

  constructor(sizeBytes: number) {
    const memory = allocateMemory(sizeBytes);
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
