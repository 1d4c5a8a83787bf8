// The plane's own side: carries out one order, and posts its reports and its result or error.
import { ControlPage } from "./control-page.ts";
import { failureOf, type OrderMessage, type OrderType, type PlaneMessage } from "./protocol.ts";

/** Carries out orders of one type. Blocks, or lets its thread's event loop run; its error becomes the order's. */
export type CarryOut<Type extends OrderType> = (
  order: Type["order"],
  control: ControlPage,
  report: (report: Type["report"]) => void,
) => Type["result"] | Promise<Type["result"]>;

/** Carries out the order in a message. Never throws. */
export async function answerOrder<Type extends OrderType>(
  { id, control, order }: OrderMessage<string, Type["order"]>,
  carryOut: CarryOut<Type>,
  post: (message: PlaneMessage) => void,
): Promise<void> {
  const report = (what: Type["report"]): void => post({ type: "report", id, report: what });
  try {
    post({ type: "done", id, result: await carryOut(order, new ControlPage(control), report) });
  } catch (error) {
    post({ type: "failed", id, failure: failureOf(error) });
  }
}
