// The messages between the control side and a plane. A plane carries out one order after another. It may report while
// it does so, and ends with a result or an error. All messages are structured-cloneable.
import { describeError, kindOf, XentoolError, type ErrorContext, type ErrorKind } from "../core/errors.ts";
import type { ControlHandle } from "./control-page.ts";

/** One kind of order: its contents, its reports and its result. */
export interface OrderType {
  readonly order: unknown;
  readonly report: unknown;
  readonly result: unknown;
}

/** `role` names the service that carries out the order; cmd/worker.ts knows the roles. */
export interface OrderMessage<Role extends string = string, Order = unknown> {
  readonly role: Role;
  readonly id: number;
  readonly control: ControlHandle;
  readonly order: Order;
}

/** An error in transit. */
export interface FailureMessage {
  readonly kind: ErrorKind;
  readonly message: string;
  readonly context: ErrorContext;
}

export type PlaneMessage =
  | { readonly type: "report"; readonly id: number; readonly report: unknown }
  | { readonly type: "done"; readonly id: number; readonly result: unknown }
  | { readonly type: "failed"; readonly id: number; readonly failure: FailureMessage };

/** Converts anything thrown to the form in which it is sent to the control side. */
export function failureOf(error: unknown): FailureMessage {
  const context = error instanceof XentoolError ? error.context : {};
  return { kind: kindOf(error), message: describeError(error), context };
}

/** Restores the error that a plane met. */
export function asError({ kind, message, context }: FailureMessage): XentoolError {
  return new XentoolError(kind, message, context);
}
