// The thread of a SecureLine: it keeps its relay between one order and the next.
import { TlsRelay } from "../../block/targets/nbd/tls-relay.ts";
import { configureLogging } from "../../core/log.ts";
import type { CarryOut } from "../../plane/answer.ts";
import type { SecureLineOrder } from "./secure-line.ts";

let relay: TlsRelay | undefined;

export const carryOutSecureLineOrder: CarryOut<SecureLineOrder> = async (order) => {
  if (order.type === "close") return relay?.close();
  // It has nothing to say but what is wrong.
  configureLogging(0, `xentool: ${order.name}`);
  relay = await TlsRelay.listen(order.path, order.to);
};
