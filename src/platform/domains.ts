// Whether a domain exists, according to Xen itself: that needs neither an xenstored nor the right to ask it.
import { XentoolError } from "../core/errors.ts";
import { escapeText } from "../core/log.ts";
import type { Domid, EvtchnPort } from "../core/types.ts";
import type { EventChannels, Platform } from "./platform.ts";

/** A port that no domain can be bound to: the error shows whether the domain exists. */
const NO_PORT = 0 as EvtchnPort;

/**
 * Whether Xen knows no such domain. A domain that died stays known while anybody maps pages of it. False if Xen cannot
 * be asked.
 */
export function isDomainUnknown(platform: Platform, domid: Domid): boolean {
  let channels: EventChannels | undefined;
  try {
    channels = platform.openEventChannels();
    channels.unbind(channels.bindInterdomain(domid, NO_PORT));
    return false;
  } catch (error) {
    return error instanceof XentoolError && error.context["errno"] === "ESRCH";
  } finally {
    channels?.close();
  }
}

/** The error for every command that names a domain which does not exist. */
export function noDomain(domain: Domid | string): XentoolError {
  if (typeof domain === "number")
    return new XentoolError("environment", `there is no domain ${domain}`, { domid: domain });
  const name = escapeText(domain);
  return new XentoolError("environment", `there is no domain called "${name}"`, { name });
}
