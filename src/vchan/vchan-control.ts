// The layout of a vchan's control page: two flags one way, byte and event counts the other way.
import type { Reactor } from "../native/reactor.ts";
import type { ControlPage } from "../plane/control-page.ts";
import type { VchanCounts } from "./endpoint.ts";

const STOP = 1;
const PEER_DEAD = 2;

export class VchanControl {
  readonly page: ControlPage;

  constructor(page: ControlPage) {
    this.page = page;
  }

  /** Ends waits in `reactor` when there is something to look at, until the result is disposed of. */
  wakes(reactor: Reactor): Disposable {
    const watch = reactor.watch(this.page.wakeFd, () => this.page.drain());
    return { [Symbol.dispose]: () => reactor.unwatch(watch) };
  }

  /** Asks the plane to end its current work, soon and in order. */
  stop(): void {
    this.page.raise(STOP);
  }

  /** Tells the plane that the peer's domain is gone. */
  declarePeerDead(): void {
    this.page.raise(PEER_DEAD);
  }

  /** Prepares for a new session on the same plane. */
  reset(): void {
    this.page.reset();
  }

  get stopped(): boolean {
    return this.page.isRaised(STOP);
  }

  get peerDead(): boolean {
    return this.page.isRaised(PEER_DEAD);
  }

  publish(counts: VchanCounts): void {
    const { numbers } = this.page;
    numbers[0] = counts.bytesRead;
    numbers[1] = counts.bytesWritten;
    numbers[2] = counts.eventsSent;
    numbers[3] = counts.eventsReceived;
  }

  counts(): VchanCounts {
    const [bytesRead = 0, bytesWritten = 0, eventsSent = 0, eventsReceived = 0] = this.page.numbers;
    return { bytesRead, bytesWritten, eventsSent, eventsReceived };
  }
}
