// Opens the transport that a platform, or the environment, says xenstore is reached by.
import { XentoolError } from "../core/errors.ts";
import type { XenstoreEndpoint } from "../platform/platform.ts";
import type { XenstoreTransport } from "./transport.ts";
import { openDevice } from "./transports/device.ts";
import { RingTransport } from "./transports/ring.ts";
import { openSocket } from "./transports/socket.ts";

const ignore = (): void => {};

/**
 * Opens `endpoint` within `timeoutMs`. Fails with `environment` when there is nothing to connect to and
 * with `timeout` when opening hangs, as the device does while no xenstored runs.
 */
export async function openTransport(
  endpoint: XenstoreEndpoint,
  timeoutMs: number,
): Promise<XenstoreTransport> {
  const opening = openEndpoint(endpoint, timeoutMs);
  let timer: ReturnType<typeof setTimeout> | undefined;
  const timeout = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => {
      opening.then((late) => late.close(), ignore);
      reject(
        new XentoolError(
          "timeout",
          `${endpoint.path} did not open within ${timeoutMs} ms; does xenstored run?`,
        ),
      );
    }, timeoutMs);
  });
  try {
    return await Promise.race([opening, timeout]);
  } finally {
    clearTimeout(timer);
  }
}

function openEndpoint(endpoint: XenstoreEndpoint, timeoutMs: number): Promise<XenstoreTransport> {
  switch (endpoint.kind) {
    case "socket":
      return openSocket(endpoint.path);
    case "device":
      return openDevice(endpoint.path);
    case "ring":
      return RingTransport.connect(endpoint.open(), timeoutMs);
  }
}
