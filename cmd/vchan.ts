// xentool vchan: byte pipes between domains, and their benchmark.
import { command, group } from "./lib/command.ts";
import {
  BENCH_CONNECT_OPTIONS,
  BENCH_LISTEN_OPTIONS,
  CONNECT_OPTIONS,
  LISTEN_OPTIONS,
} from "./lib/vchan-options.ts";
import { spawnWorker } from "./spawn-worker.ts";

const listenCommand = command({
  name: "listen",
  summary: "Serve a vchan to DOMID and relay it to standard input and output, a socket or a command",
  options: LISTEN_OPTIONS,
  conflicts: [["unix", "tcp"]],
  timeout: "Seconds to wait for each client (default: for ever), and for xenstore to answer (default 5)",
  trailing: "[-- COMMAND...]",
  examples: [
    ["xentool vchan listen 1 files --receive > got.tar", "take what domain 1 sends"],
    ["xentool vchan listen 1 ssh --keep --tcp 127.0.0.1:22", "let domain 1 reach our sshd"],
    ["xentool vchan listen 1 date --keep -- date", "run a command for each client"],
  ],
  run: async (argv, context) => {
    const { runListen } = await import("./lib/vchan-relay.ts");
    return runListen(argv, context, spawnWorker);
  },
});

const connectCommand = command({
  name: "connect",
  summary: "Connect to a vchan of DOMID and relay it to standard input and output, a socket or a command",
  options: CONNECT_OPTIONS,
  conflicts: [["unix", "tcp"]],
  timeout: "Seconds that --wait waits (default: for ever), and xenstore may take to answer (default 5)",
  trailing: "[-- COMMAND...]",
  examples: [
    ["tar c . | xentool vchan connect 0 files --wait", "send to domain 0, once it listens"],
    ["ssh -o ProxyCommand='xentool vchan connect 0 ssh' dom0", "ssh over a vchan, without a network"],
    ["xentool vchan connect 0 db --keep --wait --unix /run/db.sock", "a service of domain 0 as a socket"],
  ],
  run: async (argv, context) => {
    const { runConnect } = await import("./lib/vchan-relay.ts");
    return runConnect(argv, context, spawnWorker);
  },
});

const benchListenCommand = command({
  name: "listen",
  summary: "Play the other end of a benchmark",
  options: BENCH_LISTEN_OPTIONS,
  timeout: "Seconds to wait for the other end (default: for ever), and for xenstore to answer (default 5)",
  examples: [
    ["xentool vchan bench listen 1 bench", "with rings of 64 KiB"],
    ["xentool vchan bench listen 1 bench --read-size 0 --write-size 0", "with 1 and 2 KiB"],
  ],
  run: async (argv, context) => {
    const { runBenchListen } = await import("./lib/vchan-bench.ts");
    return runBenchListen(argv, context, spawnWorker);
  },
});

const benchConnectCommand = command({
  name: "connect",
  summary: "Measure throughput each way and both ways, and round trips, against `vchan bench listen`",
  options: BENCH_CONNECT_OPTIONS,
  timeout:
    "Seconds in which the other end may do nothing (default: any number), and xenstore may take to answer (default 5)",
  examples: [
    ["xentool vchan bench connect 0 bench", "everything, against `vchan bench listen` in domain 0"],
    ["xentool vchan bench connect 0 bench --json --bytes 16M --rounds 100", "briefly, for a script"],
  ],
  run: async (argv, context) => {
    const { runBenchConnect } = await import("./lib/vchan-bench.ts");
    return runBenchConnect(argv, context, spawnWorker);
  },
});

const benchCommand = group({
  name: "bench",
  summary: "Measure a vchan",
  actions: [benchListenCommand, benchConnectCommand],
  examples: [
    ["xentool vchan bench listen 1 bench", "in domain 0"],
    ["xentool vchan bench connect 0 bench", "in domain 1"],
  ],
});

export const vchanCommand = group({
  name: "vchan",
  summary: "Byte pipes between domains, compatible with libxenvchan",
  actions: [listenCommand, connectCommand, benchCommand],
  examples: [
    ["xentool vchan listen 1 ssh --keep --tcp 127.0.0.1:22", "let domain 1 reach our sshd"],
    ["tar c . | xentool vchan connect 0 files --wait", "send to domain 0, once it listens"],
  ],
});
