// The bodies of `xentool vchan listen` and `connect`: arguments become a session; summaries are printed.
import { existsSync } from "node:fs";
import { isatty } from "node:tty";
import { assert, XentoolError } from "../../src/core/errors.ts";
import { requireSize } from "../../src/core/sizes.ts";
import type { SpawnWorker } from "../../src/plane/plane.ts";
import { choosePlatform } from "../../src/platform/open.ts";
import type { Platform } from "../../src/platform/platform.ts";
import { chooseOrders, VCHAN_ORDER_MAX, type VchanOrders } from "../../src/protocol/vchan.ts";
import type { VchanRole } from "../../src/vchan/endpoint.ts";
import type { LocalSpec } from "../../src/vchan/local.ts";
import {
  connectAndRelay,
  listenAndRelay,
  type RelaySessionOptions,
  type SessionSummary,
} from "../../src/vchan/relay-session.ts";
import { enterRelayJail } from "../../src/vchan/jail.ts";
import { checkVchanName, vchanPlace, type VchanPlace } from "../../src/vchan/rendezvous.ts";
import { findDomain, parseDomain } from "../../src/xenstore/domains.ts";
import { parseHostPort } from "./host-port.ts";
import { toNumber } from "./arguments.ts";
import type { CommandContext } from "./run-command.ts";
import type { ConnectArguments, ListenArguments } from "./vchan-options.ts";
import { showProgress, showsProgress, streamUse, waitPrinter } from "./vchan-progress.ts";

type RelayArguments = ListenArguments | ConnectArguments;

const LINGER_SECONDS_MAX = 1_000_000;

/** Serves clients until there is nothing more to do. Returns the exit status. */
export async function runListen(
  argv: ListenArguments,
  context: CommandContext,
  spawnWorker: SpawnWorker,
): Promise<number> {
  const orders = ordersOf(argv);
  const options = await relayOptions(argv, context, spawnWorker, "server");
  using _ = options.platform;
  return await listenAndRelay(options, orders);
}

/** Connects, once or for one local connection after another. Returns the exit status. */
export async function runConnect(
  argv: ConnectArguments,
  context: CommandContext,
  spawnWorker: SpawnWorker,
): Promise<number> {
  if (argv.keep && argv.unix === undefined && argv.tcp === undefined)
    throw new XentoolError("usage", "connect --keep needs --unix or --tcp: there is one standard input");
  const options = await relayOptions(argv, context, spawnWorker, "client");
  using _ = options.platform;
  return await connectAndRelay(options, argv.wait);
}

/** The ring orders that the arguments ask for. */
export function ordersOf(argv: Pick<ListenArguments, "read-size" | "write-size">): VchanOrders {
  const most = 2 ** VCHAN_ORDER_MAX;
  const read = requireSize("--read-size", argv["read-size"], 0, most);
  const write = requireSize("--write-size", argv["write-size"], 0, most);
  const orders = chooseOrders(read, write);
  assert(orders !== undefined, "there are orders for sizes in range");
  return orders;
}

/** The platform, and the place in xenstore where both ends meet. Checks both arguments first. */
export async function openPlace(
  argv: Pick<ListenArguments, "domid" | "name">,
  context: CommandContext,
  role: VchanRole,
): Promise<{ platform: Platform; place: VchanPlace }> {
  const named = parseDomain(argv.domid, "DOMID");
  checkVchanName(argv.name);
  using undo = new DisposableStack();
  const platform = undo.use(await choosePlatform({ platform: context.platform }));
  const peer = await findDomain(platform, named, context.timeoutMs);
  const own = platform.domid;
  const [server, client] = role === "server" ? [own, peer] : [peer, own];
  undo.move();
  return { platform, place: vchanPlace(argv.name, server, client) };
}

async function relayOptions(
  argv: RelayArguments,
  context: CommandContext,
  spawnWorker: SpawnWorker,
  role: VchanRole,
): Promise<RelaySessionOptions> {
  checkDirections(argv);
  const local = localSpec(argv);
  const lingerMs = lingerMsOf(argv.linger);
  const { platform, place } = await openPlace(argv, context, role);
  const { verbosity, json } = context;
  const streams = local.kind === "stdio" ? { input: streamUse(0), output: streamUse(1) } : undefined;
  const isOneWay = argv.send || argv.receive;
  const watched = showsProgress({ isTerminal: isatty(2), verbosity, json, streams, isOneWay });
  return {
    platform,
    place,
    spawnWorker,
    local,
    lingerMs,
    sendOnly: argv.send,
    keep: argv.keep,
    enterJail:
      argv.jail === "off"
        ? undefined
        : () => enterRelayJail(argv.jail === "strict", platform.descriptor, role, local),
    signal: context.stop,
    force: context.force,
    timeoutMs: context.timeoutMs,
    ...(watched ? { onRelay: showProgress } : {}),
    ...(json ? { onSummary: (summary) => printSummary(summary, local) } : { onWait: waitPrinter() }),
  };
}

/** There must be only one instruction on which of the two streams to use and what ends them. */
function checkDirections(argv: RelayArguments): void {
  const { send, receive, linger, unix, tcp } = argv;
  if (send && receive) throw new XentoolError("usage", "--send and --receive exclude each other");
  if (send && linger !== undefined)
    throw new XentoolError("usage", "--send and --linger exclude each other: --send waits for no answer");
  if (receive && (unix !== undefined || tcp !== undefined || argv["--"] !== undefined))
    throw new XentoolError("usage", "--receive is for standard output alone, not for a socket or a command");
}

function localSpec(argv: RelayArguments): LocalSpec {
  const command = argv["--"] ?? [];
  if (command.length > 0) {
    if (argv.jail !== "off")
      throw new XentoolError(
        "usage",
        "--jail and a command after -- exclude each other: in a jail none can be started",
      );
    if (argv.unix !== undefined || argv.tcp !== undefined)
      throw new XentoolError("usage", "a command after -- and a socket exclude each other");
    checkProgram(command[0]);
    return { kind: "command", argv: command };
  }
  if (argv.unix !== undefined) return { kind: "unix", path: argv.unix };
  if (argv.tcp !== undefined) return { kind: "tcp", ...parseHostPort("--tcp", argv.tcp) };
  return { kind: "stdio", receiveOnly: argv.receive, keepsOutput: argv.keep };
}

/** Fails now if the program cannot be run, rather than when a client comes. */
function checkProgram(name: string): void {
  if (Bun.which(name) !== null) return;
  const why = name.includes("/") && existsSync(name) ? "not executable" : "not found";
  throw new XentoolError("environment", `cannot run ${name}: ${why}`);
}

function lingerMsOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  if (text === "forever") return Infinity;
  const seconds = toNumber(text);
  if (typeof seconds === "number" && seconds >= 0 && seconds <= LINGER_SECONDS_MAX) return seconds * 1000;
  throw new XentoolError(
    "usage",
    `--linger wants "forever" or seconds, up to ${LINGER_SECONDS_MAX}, not ${JSON.stringify(text)}`,
  );
}

/** In a plain relay, standard output is the stream itself, so messages and summaries go to standard error. */
function printSummary(summary: SessionSummary, local: LocalSpec): void {
  const stream = local.kind === "stdio" ? process.stderr : process.stdout;
  stream.write(`${JSON.stringify(summary)}\n`);
}
