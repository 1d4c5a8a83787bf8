// Event channels with one port, for tests of who sleeps and who is woken.
import type { EvtchnPort } from "../../src/core/types.ts";
import type { EventChannels } from "../../src/platform/platform.ts";

export const FAKE_PORT = 3 as EvtchnPort;

/** One port that the other end fires: masked from its delivery until it is unmasked, as on Xen. */
export class FakeChannels implements EventChannels {
  readonly fd = -1;
  masked = false;
  /** How often the other end sent an event. */
  fired = 0;
  #fired = false;

  /** The other end's event. */
  fire(): void {
    this.fired++;
    this.#fired = true;
  }

  /** Whether a sleeper would be woken now. */
  get isDelivered(): boolean {
    return this.#fired && !this.masked;
  }

  pending(ports: Uint32Array): number {
    if (!this.isDelivered) return 0;
    ports[0] = FAKE_PORT;
    this.#fired = false;
    this.masked = true;
    return 1;
  }

  unmask(): number {
    this.masked = false;
    return 0;
  }

  bindInterdomain = (): EvtchnPort => FAKE_PORT;
  bindUnbound = (): EvtchnPort => FAKE_PORT;
  notify = (): number => 0;
  unbind(): void {}
  restrict = (): boolean => true;
  close(): void {}
}
