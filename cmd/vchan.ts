// xentool vchan: byte pipes between domains, and their benchmark.
import type { Argv, CommandModule } from "yargs";
import { actionGroup } from "./lib/action-group.ts";
import { withExamples } from "./lib/examples.ts";
import { runCommand, type GlobalArguments } from "./lib/run-command.ts";
import type { BenchConnectArguments, BenchListenArguments } from "./lib/vchan-bench.ts";
import type { ConnectArguments, ListenArguments } from "./lib/vchan-relay.ts";
import { spawnWorker } from "./spawn-worker.ts";

const RING_SIZE_DEFAULT = 65_536;
const LISTEN = "Serve a vchan to DOMID and relay it to standard input and output, a socket or a command";
const CONNECT =
  "Connect to a vchan of DOMID and relay it to standard input and output, a socket or a command";

function place<T>(yargs: Argv<T>) {
  return yargs
    .positional("domid", { type: "number", demandOption: true, describe: "The other domain's number" })
    .positional("name", {
      type: "string",
      demandOption: true,
      describe: "A port, as in /local/domain/SERVER/data/vchan/CLIENT/NAME, or an absolute xenstore path",
    });
}

function ringSizes<T>(yargs: Argv<T>) {
  return yargs
    .option("read-size", {
      type: "number",
      default: RING_SIZE_DEFAULT,
      requiresArg: true,
      describe: "Bytes of the ring from the client, up to 1 MiB; 0: the smallest",
    })
    .option("write-size", {
      type: "number",
      default: RING_SIZE_DEFAULT,
      requiresArg: true,
      describe: "Bytes of the ring to the client, up to 1 MiB; 0: the smallest",
    });
}

function localEnds<T>(yargs: Argv<T>, unix: string, tcp: string) {
  return yargs
    .option("unix", { type: "string", requiresArg: true, describe: unix })
    .option("tcp", { type: "string", requiresArg: true, describe: tcp })
    .option("send", {
      type: "boolean",
      default: false,
      describe: "Only send: close as soon as the peer has read everything",
    })
    .option("receive", {
      type: "boolean",
      default: false,
      describe: "Only receive: leave standard input alone",
    })
    .option("linger", {
      type: "string",
      requiresArg: true,
      describe:
        "With a peer other than xentool: once it has read everything, close after SECONDS of silence; forever never closes (default: 5 once something was sent)",
    })
    .conflicts("unix", "tcp");
}

const listenCommand: CommandModule<GlobalArguments, ListenArguments> = {
  command: "listen <domid> <name>",
  describe: LISTEN,
  builder: (yargs) =>
    withExamples(
      localEnds(
        ringSizes(
          place(yargs.usage(`$0 vchan listen <domid> <name> [options] [-- COMMAND...]\n\n${LISTEN}`)),
        ),
        "For each client, connect to this socket",
        "For each client, connect to HOST:PORT",
      ).option("keep", { type: "boolean", default: false, describe: "Serve one client after another" }),
      [
        ["xentool vchan listen 1 files > got.tar", "take what domain 1 sends"],
        ["xentool vchan listen 1 ssh --keep --tcp 127.0.0.1:22", "let domain 1 reach our sshd"],
        ["xentool vchan listen 1 date --keep -- date", "run a command for each client"],
      ],
    ),
  handler: (argv) =>
    runCommand(argv, async (context) => {
      const { runListen } = await import("./lib/vchan-relay.ts");
      return runListen(argv, context, spawnWorker);
    }),
};

const connectCommand: CommandModule<GlobalArguments, ConnectArguments> = {
  command: "connect <domid> <name>",
  describe: CONNECT,
  builder: (yargs) =>
    withExamples(
      localEnds(
        place(yargs.usage(`$0 vchan connect <domid> <name> [options] [-- COMMAND...]\n\n${CONNECT}`)),
        "Listen at this socket; relay the vchan to whoever connects",
        "Listen at HOST:PORT; relay the vchan to whoever connects",
      )
        .option("wait", { type: "boolean", default: false, describe: "Wait until there is a server" })
        .option("keep", {
          type: "boolean",
          default: false,
          describe: "Serve one local connection after another",
        }),
      [
        ["tar c . | xentool vchan connect 0 files --wait", "send to domain 0, once it listens"],
        ["ssh -o ProxyCommand='xentool vchan connect 0 ssh' dom0", "ssh over a vchan, without a network"],
        ["xentool vchan connect 0 db --keep --wait --unix /run/db.sock", "a service of domain 0 as a socket"],
      ],
    ),
  handler: (argv) =>
    runCommand(argv, async (context) => {
      const { runConnect } = await import("./lib/vchan-relay.ts");
      return runConnect(argv, context, spawnWorker);
    }),
};

const benchListenCommand: CommandModule<GlobalArguments, BenchListenArguments> = {
  command: "listen <domid> <name>",
  describe: "Play the other end of a benchmark",
  builder: (yargs) =>
    withExamples(ringSizes(place(yargs)), [
      ["xentool vchan bench listen 1 bench", "with rings of 64 KiB"],
      ["xentool vchan bench listen 1 bench --read-size 0 --write-size 0", "with 1 and 2 KiB"],
    ]),
  handler: (argv) =>
    runCommand(argv, async (context) => {
      const { runBenchListen } = await import("./lib/vchan-bench.ts");
      return runBenchListen(argv, context, spawnWorker);
    }),
};

const benchConnectCommand: CommandModule<GlobalArguments, BenchConnectArguments> = {
  command: "connect <domid> <name>",
  describe: "Measure throughput each way and both ways, and round trips, against `vchan bench listen`",
  builder: (yargs) =>
    withExamples(
      place(yargs)
        .option("megabytes", {
          type: "number",
          default: 256,
          requiresArg: true,
          describe: "Millions of bytes each way",
        })
        .option("rounds", {
          type: "number",
          default: 10_000,
          requiresArg: true,
          describe: "How many round trips",
        }),
      [
        ["xentool vchan bench connect 0 bench", "everything, against `vchan bench listen` in domain 0"],
        ["xentool vchan bench connect 0 bench --json --megabytes 16 --rounds 100", "briefly, for a script"],
      ],
    ),
  handler: (argv) =>
    runCommand(argv, async (context) => {
      const { runBenchConnect } = await import("./lib/vchan-bench.ts");
      return runBenchConnect(argv, context, spawnWorker);
    }),
};

const benchCommand = actionGroup(
  "vchan bench",
  "Measure a vchan",
  [benchListenCommand, benchConnectCommand],
  [
    ["xentool vchan bench listen 1 bench", "in domain 0"],
    ["xentool vchan bench connect 0 bench", "in domain 1"],
  ],
);

export const vchanCommand = actionGroup(
  "vchan",
  "Byte pipes between domains, compatible with libxenvchan",
  [listenCommand, connectCommand, benchCommand],
  [
    ["xentool vchan listen 1 ssh --keep --tcp 127.0.0.1:22", "let domain 1 reach our sshd"],
    ["tar c . | xentool vchan connect 0 files --wait", "send to domain 0, once it listens"],
  ],
);
