// Branded numbers for quantities that are easily confused, with the checks that create them.
import { XentoolError } from "./errors.ts";

declare const brand: unique symbol;
type Branded<Name extends string> = number & { readonly [brand]: Name };

/** A domain's number. */
export type Domid = Branded<"Domid">;
/** A grant reference: an index into the granting domain's grant table. */
export type GrantRef = Branded<"GrantRef">;
/** A local event-channel port. */
export type EvtchnPort = Branded<"EvtchnPort">;

export const PAGE_SIZE = 4096;
/** First of the reserved domain numbers (DOMID_FIRST_RESERVED in public/xen.h). */
export const DOMID_FIRST_RESERVED = 0x7ff0;

/** Returns `value` as a domain number, or throws `usage` naming `what`. */
export function toDomid(value: number, what = "domain number"): Domid {
  if (!Number.isInteger(value) || value < 0 || value >= DOMID_FIRST_RESERVED)
    throw new XentoolError("usage", `${what} must be a whole number from 0 to 32751, not ${value}`);
  return value as Domid;
}

/** Parses a peer's decimal string as a whole number in [0, max]; undefined if it is not one. Accepts leading zeros. */
export function parseDecimal(text: string | null | undefined, max: number): number | undefined {
  if (text === null || text === undefined || !/^[0-9]{1,16}$/.test(text)) return undefined;
  const value = Number(text);
  return value <= max ? value : undefined;
}
