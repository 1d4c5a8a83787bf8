// Tells when a domain whose ring is looked at is gone: the page stays readable, and says nothing of it.
import { describeError } from "../core/errors.ts";
import { moduleLogger } from "../core/log.ts";
import type { Domid } from "../core/types.ts";
import type { Platform } from "../platform/platform.ts";
import { Xenstore } from "../xenstore/client.ts";

const log = moduleLogger("xsring");

/** Watches from its making on, and waits for nobody: xenstored may be what is wrong. */
export class DomainWatch {
  readonly #gone = new AbortController();
  readonly #lost = new AbortController();
  #xenstore: Xenstore | undefined;
  #isClosed = false;

  constructor(platform: Platform, domid: Domid) {
    this.#follow(platform, domid).catch((error: unknown) =>
      log.info("the end of domain {domid} will not be noticed: {error}", {
        domid,
        error: describeError(error),
      }),
    );
  }

  /** Fires when the domain that was there is gone. Never where there was no xenstored to say so. */
  get gone(): AbortSignal {
    return this.#gone.signal;
  }

  /** Fires, with the error, when xenstored goes away, who would have said so. */
  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  [Symbol.dispose](): void {
    this.#isClosed = true;
    this.#xenstore?.close();
  }

  async #follow(platform: Platform, domid: Domid): Promise<void> {
    const xenstore = await Xenstore.connect(platform);
    this.#xenstore = xenstore;
    if (this.#isClosed) return xenstore.close();
    xenstore.onClose((error) => this.#lost.abort(error));
    // Asked before, so that none goes between the watch and its first look.
    let wasThere = await xenstore.isDomainIntroduced(domid);
    await xenstore.watch("@releaseDomain", async () => {
      const isThere = await xenstore.isDomainIntroduced(domid);
      if (wasThere && !isThere) this.#gone.abort();
      wasThere ||= isThere;
    });
  }
}
