// Opens the transport to a platform's xenstore.
import { within } from "../core/deadline.ts";
import { XentoolError } from "../core/errors.ts";
import type { XenstoreEndpoint } from "../platform/platform.ts";
import type { XenstoreTransport } from "./transport.ts";
import { openDevice } from "./transports/device.ts";
import { RingTransport } from "./transports/ring.ts";
import { openInherited, openSocket } from "./transports/socket.ts";

const ignore = (): void => {};

/**
 * Opens `endpoint` within `timeoutMs`. Fails with `environment` if there is nothing to connect to, and with `timeout`
 * if opening hangs, as the device does while no xenstored runs.
 */
export async function openTransport(
  endpoint: XenstoreEndpoint,
  timeoutMs: number,
): Promise<XenstoreTransport> {
  const opening = openEndpoint(endpoint, timeoutMs);
  return within(timeoutMs, opening, () => {
    opening.then((late) => late.close(), ignore);
    const message = `${endpoint.path} did not open within ${timeoutMs} ms; does xenstored run?`;
    return new XentoolError("timeout", message);
  });
}

function openEndpoint(endpoint: XenstoreEndpoint, timeoutMs: number): Promise<XenstoreTransport> {
  switch (endpoint.kind) {
    case "socket":
      return openSocket(endpoint.path, timeoutMs);
    case "device":
      return openDevice(endpoint.path);
    case "inherited":
      return openInherited(endpoint.fd, endpoint.path);
    case "ring":
      return RingTransport.connect(endpoint.open(), timeoutMs);
  }
}
