// The pages that carry the data. They are granted to the backend once, when the device is opened, and reused, because
// grants are scarce (gntalloc's limit) and slow to make. So the backend may keep them mapped, too; it then maps all of
// them for writing. One more page holds zeroes and can stand for any number of segments.
import { XentoolError } from "../core/errors.ts";
import { PAGE_SIZE, type Domid } from "../core/types.ts";
import { PageRuns } from "../native/page-runs.ts";
import type { GrantShare, SharedPages } from "../platform/platform.ts";
import { MIN_POOL_PAGES } from "./bounds.ts";

export class GrantedPool extends PageRuns {
  /** Grant reference by page; that of `zeroPage` comes last. */
  readonly refs: Uint32Array;
  /** The number of the page of zeroes. It is never allocated. */
  readonly zeroPage: number;
  readonly words: Uint32Array;
  readonly #data: SharedPages;
  readonly #zeroes: SharedPages;

  private constructor(data: SharedPages, zeroes: SharedPages) {
    super(data.refs.length);
    this.#data = data;
    this.#zeroes = zeroes;
    this.words = data.mapping.words;
    this.zeroPage = data.refs.length;
    this.refs = Uint32Array.from([...data.refs, ...zeroes.refs]);
  }

  /** Shares `wantedPages` with `backend`. If this domain cannot share that many, it tries half, and so on. */
  static share(share: GrantShare, backend: Domid, wantedPages: number): GrantedPool {
    using undo = new DisposableStack();
    const zeroes = share.share(backend, 1, "rw");
    undo.use(zeroes.mapping);
    const data = shareWhatThereIs(share, backend, wantedPages);
    undo.move();
    return new GrantedPool(data, zeroes);
  }

  addressOf(page: number): number {
    return this.#data.mapping.address + page * PAGE_SIZE;
  }

  /** The memory of the run of `count` pages at `page`. */
  bytes(page: number, count: number): Uint8Array {
    return this.#data.mapping.bytes.subarray(page * PAGE_SIZE, (page + count) * PAGE_SIZE);
  }

  close(): void {
    this.#data.mapping.close();
    this.#zeroes.mapping.close();
  }
}

function shareWhatThereIs(share: GrantShare, backend: Domid, wantedPages: number): SharedPages {
  for (let pages = wantedPages; ; pages = Math.floor(pages / 2)) {
    try {
      return share.share(backend, pages, "rw");
    } catch (error) {
      const full = error instanceof XentoolError && error.context["errno"] === "ENOSPC";
      if (!full || pages / 2 < MIN_POOL_PAGES) throw error;
    }
  }
}
