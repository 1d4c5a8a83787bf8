// A plane for the tests of planes.
import { XentoolError } from "../../src/core/errors.ts";
import { answerOrder, type CarryOut } from "../../src/plane/answer.ts";
import type { OrderMessage } from "../../src/plane/protocol.ts";

export interface TestOrder {
  readonly order:
    | { readonly op: "echo"; readonly text: string }
    /** block: until flag 4 is up; then tells number 3. deaf: for ever. */
    | { readonly op: "block" | "deaf" | "throw" | "throw outside" | "exit" };
  readonly report: string;
  readonly result: string | undefined;
}

declare const self: Worker;

const carryOut: CarryOut<TestOrder> = (order, control, report) => {
  switch (order.op) {
    case "echo":
      report(`${order.text} begun`);
      return order.text;
    case "block":
      report("begun");
      control.await(4);
      return String(control.numbers[3]);
    case "deaf":
      report("begun");
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
      return undefined;
    case "throw":
      throw new XentoolError("io", "the disk is full", { errno: "ENOSPC" }, new Error("really"));
    default:
      return process.exit(0);
  }
};

self.onmessage = ({ data }: MessageEvent<OrderMessage<"test", TestOrder["order"]>>): void => {
  if (data.order.op === "throw outside") throw new Error("nobody catches this");
  void answerOrder(data, carryOut, (message) => self.postMessage(message));
};
