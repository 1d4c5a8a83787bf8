// What the commands of `vchan` take, apart from the commands and their bodies, which both know it.
import type { ArgumentsOf } from "./command.ts";
import { ASKED_JAIL } from "./jail-option.ts";
import { flag, text, wholeNumber } from "./option.ts";

const RING_SIZE_DEFAULT = "64k";

const PLACE = {
  domid: text("The other domain, by number or name", { positional: true, complete: "domain" }),
  name: text("A port, as in /local/domain/SERVER/data/vchan/CLIENT/NAME, or an absolute xenstore path", {
    positional: true,
  }),
};

const RING_SIZES = {
  "read-size": text("SIZE of the ring from the client, up to 1M; 0: the smallest", {
    initial: RING_SIZE_DEFAULT,
  }),
  "write-size": text("SIZE of the ring to the client, up to 1M; 0: the smallest", {
    initial: RING_SIZE_DEFAULT,
  }),
};

function localEnds(unix: string, tcp: string) {
  return {
    unix: text(unix, { complete: "file" }),
    tcp: text(tcp),
    send: flag("Only send: close as soon as the peer has read everything"),
    receive: flag("Only receive: leave standard input alone, which stops a job in the background"),
    jail: ASKED_JAIL,
    linger: text(
      "With a peer other than xentool: once it has read everything, close after SECONDS of silence; forever never closes (default: 5 once something was sent)",
    ),
  };
}

export const LISTEN_OPTIONS = {
  ...PLACE,
  ...RING_SIZES,
  ...localEnds("For each client, connect to this socket", "For each client, connect to HOST:PORT"),
  keep: flag("Serve one client after another"),
};
export type ListenArguments = ArgumentsOf<typeof LISTEN_OPTIONS>;

export const CONNECT_OPTIONS = {
  ...PLACE,
  ...localEnds(
    "Listen at this socket; relay the vchan to whoever connects",
    "Listen at HOST:PORT; relay the vchan to whoever connects",
  ),
  wait: flag("Wait until there is a server, and for a turn if it has another client"),
  keep: flag("Serve one local connection after another"),
};
export type ConnectArguments = ArgumentsOf<typeof CONNECT_OPTIONS>;

export const BENCH_CONNECT_OPTIONS = {
  ...PLACE,
  bytes: text("SIZE of what is sent each way", { initial: "256M" }),
  rounds: wholeNumber("How many round trips", 1, 1e9, { initial: 10_000 }),
};
export type BenchConnectArguments = ArgumentsOf<typeof BENCH_CONNECT_OPTIONS>;

export const BENCH_LISTEN_OPTIONS = { ...PLACE, ...RING_SIZES };
export type BenchListenArguments = ArgumentsOf<typeof BENCH_LISTEN_OPTIONS>;
