// Notices when a domain whose ring we look at is gone: its page stays readable and does not show it.
import { describeError } from "../core/errors.ts";
import { moduleLogger } from "../core/log.ts";
import type { Domid } from "../core/types.ts";
import type { Platform } from "../platform/platform.ts";
import { Xenstore } from "../xenstore/client.ts";

const log = moduleLogger("xsring");

/** Watches as soon as it is constructed, without making anyone wait: xenstored may be what is wrong. */
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

  /** Fires when a domain that existed is gone. Never fires where no xenstored could report it. */
  get gone(): AbortSignal {
    return this.#gone.signal;
  }

  /** Fires, with the error, when xenstored goes away and so can no longer report the end of the domain. */
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
    // Ask before watching, so that the domain cannot go unnoticed between the watch and its first callback.
    let wasThere = await xenstore.isDomainIntroduced(domid);
    await xenstore.watch("@releaseDomain", async () => {
      const isThere = await xenstore.isDomainIntroduced(domid);
      if (wasThere && !isThere) this.#gone.abort();
      wasThere ||= isThere;
    });
  }
}
