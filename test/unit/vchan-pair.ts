// A connected vchan between domain 1 (the server) and domain 2 (the client), on plain memory.
import { toDomid } from "../../src/core/types.ts";
import { layoutOf, type VchanOrders } from "../../src/protocol/vchan.ts";
import { openVchanClient } from "../../src/vchan/client.ts";
import type { VchanEndpoint } from "../../src/vchan/endpoint.ts";
import { openVchanServer, type VchanServer, type VchanServerOptions } from "../../src/vchan/server.ts";
import { MemoryHost } from "./vchan-memory-platform.ts";

export const SERVER = toDomid(1);
export const CLIENT = toDomid(2);
/** Just below where a counter wraps. */
export const ALMOST_WRAPPED = 0xffff_ff00;

export class VchanPair {
  readonly host = new MemoryHost();
  readonly listening: VchanServer;
  readonly server: VchanEndpoint;
  readonly client: VchanEndpoint;
  readonly #orders: VchanOrders;

  constructor(options: Partial<VchanServerOptions> = {}) {
    this.#orders = options.orders ?? { left: 10, right: 11 };
    this.listening = openVchanServer(this.host.platform(SERVER), {
      peer: CLIENT,
      looks: false,
      ...options,
      orders: this.#orders,
    });
    this.server = this.listening.endpoint;
    this.client = this.connect();
  }

  connect(): VchanEndpoint {
    const { ringRef, port } = this.listening;
    return openVchanClient(this.host.platform(CLIENT), { peer: SERVER, ringRef, port, looks: false });
  }

  /** As libxenvchan leaves the page: nobody says anything about ends. */
  forgetEndWords(): void {
    const at = layoutOf(this.#orders).endWordsAt;
    this.server.page.bytes.fill(0, at, at + 8);
  }

  /** Closes both ends and makes sure that nothing is left. */
  [Symbol.dispose](): void {
    this.client.close();
    this.server.close();
    this.host.assertNothingLeft();
  }
}

/** Every pair of orders that can be. */
export const ORDER_PAIRS = Array.from({ length: 121 }, (_, i) => ({
  left: 10 + Math.floor(i / 11),
  right: 10 + (i % 11),
})).filter(
  ({ left, right }) =>
    !(left === right && left < 12) && !(Math.min(left, right) === 10 && Math.max(left, right) === 20),
);
