// A connection within this process: a client transport whose other end is the server itself. Bytes in either direction
// are passed in a later microtask, as they would pass through a socket in a later event-loop turn.
import { XS_PAYLOAD_MAX } from "../../protocol/xs-wire.ts";
import { connectionLost } from "../errors.ts";
import type { XenstoreTransport } from "../transport.ts";
import type { Channel, Connection } from "./connection.ts";

/** Opens a connection; `accept` creates the server's end. */
export function connectDirectly(accept: (channel: Channel) => Connection): XenstoreTransport {
  let open = true;
  const whileOpen = (action: () => void): void => {
    queueMicrotask(() => {
      if (open) action();
    });
  };
  const connection = accept({
    write: (bytes) => {
      whileOpen(() => client.onData(bytes));
      return bytes.length;
    },
    setReading: () => {},
    violation: () => connection.close(),
    close: () => {
      whileOpen(() => {
        open = false;
        client.onClose(connectionLost(client.name));
      });
    },
  });
  const client: XenstoreTransport = {
    name: "this process",
    payloadBytesMax: XS_PAYLOAD_MAX,
    onData: () => {},
    onClose: () => {},
    write: (packet) => whileOpen(() => connection.receive(packet)),
    close: () => {
      open = false;
      connection.close();
    },
  };
  return client;
}
