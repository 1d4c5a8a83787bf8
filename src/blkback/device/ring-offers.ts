// When a frontend offers rings. The states alone do not show each offer: a frontend resuming from s2idle goes from
// Connected through Initialised to Connected without waiting for us, often with the same numbers.
import type { Unwatch, Xenstore } from "../../xenstore/client.ts";
import { frontendDir, type DeviceAddress } from "../address.ts";

/** Every offer writes one of these keys: one ring has the first, several the second. */
const KEYS = ["event-channel", "queue-0/event-channel"];

/**
 * Calls `onOffer` with each offer, at once: xenstore tells of an offer before it answers what is asked afterwards, and
 * so nobody reads the keys of an offer that is not known yet. What is there already is not an offer.
 */
export async function watchOffers(
  xenstore: Xenstore,
  address: DeviceAddress,
  onOffer: () => void,
): Promise<Unwatch> {
  const watchKey = (key: string): Promise<Unwatch> => {
    let isFirst = true;
    const noted = (): void => {
      // The first event only confirms that the watch is set.
      if (!isFirst) onOffer();
      isFirst = false;
    };
    return xenstore.watch(`${frontendDir(address)}/${key}`, noted);
  };
  const unwatch = await Promise.all(KEYS.map(watchKey));
  return async () => {
    await Promise.all(unwatch.map((stop) => stop()));
  };
}
