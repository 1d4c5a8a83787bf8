// Entry point of every data plane's thread: each message is an order, and reports and results go back as messages.
// Nothing else lives here, because coverage cannot see into workers.
import "./lib/standard-error.ts";
import type { BlkbackOrder } from "../src/blkback/data-plane/blkback-orders.ts";
import type { BlkfrontOrder } from "../src/blkfront/blkfront-orders.ts";
import { failureOf, type OrderMessage, type PlaneMessage } from "../src/plane/protocol.ts";
import type { ImageThreadOrder } from "../src/blkback/image/image-threads.ts";
import type { SecureLineOrder } from "../src/blkback/image/secure-line.ts";
import type { VchanOrder } from "../src/vchan/vchan-orders.ts";

declare const self: Worker;

type Message =
  | OrderMessage<"blkback", BlkbackOrder["order"]>
  | OrderMessage<"blkfront", BlkfrontOrder["order"]>
  | OrderMessage<"images", ImageThreadOrder["order"]>
  | OrderMessage<"nbd-tls", SecureLineOrder["order"]>
  | OrderMessage<"vchan", VchanOrder["order"]>;

function post(message: PlaneMessage): void {
  self.postMessage(message);
}

/** Loads what an order needs only now, so that a host which lacks something for it can be reported. */
async function obey(data: Message): Promise<void> {
  const { answerOrder } = await import("../src/plane/answer.ts");
  switch (data.role) {
    case "blkback":
      return answerOrder(
        data,
        (await import("../src/blkback/data-plane/blkback-plane.ts")).carryOutBlkbackOrder,
        post,
      );
    case "blkfront":
      return answerOrder(
        data,
        (await import("../src/blkfront/blkfront-plane.ts")).carryOutBlkfrontOrder,
        post,
      );
    case "images":
      return answerOrder(
        data,
        (await import("../src/blkback/image/image-threads-plane.ts")).carryOutImageThreadOrder,
        post,
      );
    case "nbd-tls":
      return answerOrder(
        data,
        (await import("../src/blkback/image/secure-line-plane.ts")).carryOutSecureLineOrder,
        post,
      );
    case "vchan":
      return answerOrder(data, (await import("../src/vchan/vchan-plane.ts")).carryOutVchanOrder, post);
  }
}

/** For a plane that serves a disk later: so that its first order has less to wait for. */
export interface PrepareMessage {
  readonly prepare: "blkback";
}

self.onmessage = ({ data }: MessageEvent<Message | PrepareMessage>): void => {
  if ("prepare" in data) return void import("../src/blkback/data-plane/blkback-plane.ts");
  obey(data).catch((error: unknown) => post({ type: "failed", id: data.id, failure: failureOf(error) }));
};
