// What goes between the control side and a plane as messages. A plane carries out one order after the other; while it
// does it may report, and at its end there is a result or an error. All of it is structured-cloneable.
import { describeError, kindOf, XentoolError, type ErrorContext, type ErrorKind } from "../core/errors.ts";
import type { ControlHandle } from "./control-page.ts";

/** One kind of order: what it says, what is reported meanwhile, and what comes of it. */
export interface OrderType {
  readonly order: unknown;
  readonly report: unknown;
  readonly result: unknown;
}

/** `role`: the service that carries the order out; cmd/worker.ts knows them. */
export interface OrderMessage<Role extends string = string, Order = unknown> {
  readonly role: Role;
  readonly id: number;
  readonly control: ControlHandle;
  readonly order: Order;
}

/** An error on its way. */
export interface FailureMessage {
  readonly kind: ErrorKind;
  readonly message: string;
  readonly context: ErrorContext;
}

export type PlaneMessage =
  | { readonly type: "report"; readonly id: number; readonly report: unknown }
  | { readonly type: "done"; readonly id: number; readonly result: unknown }
  | { readonly type: "failed"; readonly id: number; readonly failure: FailureMessage };

/** Anything thrown, as it goes to the control side. */
export function failureOf(error: unknown): FailureMessage {
  const context = error instanceof XentoolError ? error.context : {};
  return { kind: kindOf(error), message: describeError(error), context };
}

/** The error that a plane met. */
export function asError({ kind, message, context }: FailureMessage): XentoolError {
  return new XentoolError(kind, message, context);
}
