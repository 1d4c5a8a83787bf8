// The local end of a relay as two file descriptors: standard input and output, a socket, or a command's pipes.
// Descriptors that are shared with other processes keep their flags: they are reopened, or used with care.
import { closeSync, fstatSync, type Stats } from "node:fs";
import { XentoolError } from "../core/errors.ts";
import { addressesOf } from "../core/host-names.ts";
import { XT_STREAM_LOCAL } from "../native/abi.ts";
import { check, cString, errnoText, shim } from "../native/shim.ts";
import { listenAt } from "../native/unix-listener.ts";
import { BUSY_MS, BUSY_TRIES } from "./bounds.ts";

/**
 * How a descriptor is used without ever blocking on it: a socket with a flag on each call, a file as it is, our own
 * reopened one in non-blocking mode, and a shared one only when poll says so, a page at a time.
 */
export type StreamKind = "socket" | "file" | "nonblocking" | "shared";

export interface LocalStream {
  readonly fd: number;
  readonly kind: StreamKind;
}

/** Structured-cloneable: opened in the main thread, used in a worker. */
export interface LocalEnd {
  /** Undefined: there is nothing to send. */
  readonly input: LocalStream | undefined;
  readonly output: LocalStream;
  /** Our own stdout, if it must also become /dev/null before the reader of `output` sees its end. */
  readonly outputTwin: number | undefined;
  /** Stop sending once nobody takes our output, as a command in a shell pipeline would. */
  readonly endsWithOutput: boolean;
  /** Further peers' data goes to the same output, so its reader does not see an end with this peer's. */
  readonly keepsOutput?: boolean;
}

export type LocalSpec =
  /** With `receiveOnly`, standard input is left alone: it may be a terminal that belongs to another job. */
  | { readonly kind: "stdio"; readonly receiveOnly: boolean; readonly keepsOutput: boolean }
  | { readonly kind: "unix"; readonly path: string }
  | { readonly kind: "tcp"; readonly host: string; readonly port: number }
  | { readonly kind: "command"; readonly argv: readonly string[] };

export interface OpenedLocal {
  readonly end: LocalEnd;
  /** A command's exit status once it has ended, 128 + n for signal n. */
  readonly exited: Promise<number> | undefined;
  /** Closes what was opened, once. A command that is still running sees the end of its input. */
  close(): void;
  /** Sends the command a signal. */
  kill(signal: NodeJS.Signals): void;
}

const EAGAIN = -11;

/** Our standard input and output, or only the output. */
export function openStdio({ receiveOnly, keepsOutput }: LocalSpec & { kind: "stdio" }): OpenedLocal {
  const output = openShared(1, true);
  if (output === undefined) throw new XentoolError("environment", "standard output is closed");
  const isConnection = output.kind === "socket" && fileOf(0) === fileOf(1);
  const input = receiveOnly ? undefined : isConnection ? output : openShared(0, false);
  const twin = output.fd === 1 ? undefined : 1;
  const end: LocalEnd = { input, output, outputTwin: twin, endsWithOutput: true, keepsOutput };
  const reopened = [input?.fd ?? 0, output.fd].filter((fd) => fd > 2);
  return { end, exited: undefined, close: closeOnce(reopened), kill: nothing };
}

/** Starts a command and uses its standard input and output as the local end. */
export function openCommand(argv: readonly string[]): OpenedLocal {
  using childEnds = new DisposableStack();
  using ourEnds = new DisposableStack();
  const [childIn, ourOut] = makePipe();
  childEnds.defer(() => closeSync(childIn));
  ourEnds.defer(() => closeSync(ourOut));
  const [ourIn, childOut] = makePipe();
  childEnds.defer(() => closeSync(childOut));
  ourEnds.defer(() => closeSync(ourIn));
  using undo = new DisposableStack();
  const input = undo.adopt(check(shim.xt_stream_reopen(ourIn, 0), "use a pipe"), closeSync);
  const output = undo.adopt(check(shim.xt_stream_reopen(ourOut, 1), "use a pipe"), closeSync);
  const child = spawn(argv, childIn, childOut);
  undo.move();
  return {
    end: {
      input: { fd: input, kind: "nonblocking" },
      output: { fd: output, kind: "nonblocking" },
      outputTwin: undefined,
      endsWithOutput: false,
    },
    exited: child.exited,
    close: closeOnce([input, output]),
    kill: (signal) => child.kill(signal),
  };
}

/** Connects to the service at `spec`. The connection may not be established yet; the relay finds out. */
export async function openConnection(spec: LocalSpec & { kind: "unix" | "tcp" }): Promise<OpenedLocal> {
  const [address, port] = await addressOf(spec);
  const text = cString(address);
  let fd = shim.xt_stream_connect(text, port);
  // A unix socket whose queue is full cannot be waited for, so try again.
  for (let tries = 0; fd === EAGAIN && tries < BUSY_TRIES; tries++) {
    await Bun.sleep(BUSY_MS);
    fd = shim.xt_stream_connect(text, port);
  }
  check(fd, `connect to ${describeSpec(spec)}`);
  shim.xt_stream_await_reader(fd);
  return socketEnd(fd);
}

/** An accepted or connecting socket as the local end. */
export function socketEnd(fd: number): OpenedLocal {
  const stream: LocalStream = { fd, kind: "socket" };
  const end: LocalEnd = { input: stream, output: stream, outputTwin: undefined, endsWithOutput: false };
  return { end, exited: undefined, close: closeOnce([fd]), kill: nothing };
}

export interface Listener {
  readonly fd: number;
  close(): void;
}

/** Listens at `spec`. A socket that a dead process left at the path is replaced. */
export async function openListener(spec: LocalSpec & { kind: "unix" | "tcp" }): Promise<Listener> {
  if (spec.kind === "unix") return listenAt(spec.path);
  const [address, port] = await addressOf(spec);
  const fd = shim.xt_stream_listen(cString(address), port);
  if (fd < 0)
    throw new XentoolError("environment", `cannot listen at ${describeSpec(spec)}: ${errnoText(fd)}`);
  return { fd, close: () => closeSync(fd) };
}

/** A description of the local end for messages. */
export function describeSpec(spec: LocalSpec): string {
  switch (spec.kind) {
    case "stdio":
      return "standard input and output";
    case "unix":
      return spec.path;
    case "tcp":
      return `${spec.host}:${spec.port}`;
    case "command":
      return `the command ${spec.argv[0]}`;
  }
}

async function addressOf(spec: LocalSpec & { kind: "unix" | "tcp" }): Promise<[string, number]> {
  if (spec.kind === "unix") return [spec.path, XT_STREAM_LOCAL];
  try {
    const [address] = await addressesOf(spec.host);
    return [address as string, spec.port];
  } catch (error) {
    throw new XentoolError("environment", `cannot find the host ${spec.host}`, {}, error);
  }
}

/** What tells whether two descriptors are of the same file or socket. */
function fileOf(fd: number): string | undefined {
  const stat = fstatSync(fd, { throwIfNoEntry: false });
  return stat && `${stat.dev}:${stat.ino}`;
}

/** Opens a descriptor that other processes may share. Undefined when it is closed. */
function openShared(fd: number, writable: boolean): LocalStream | undefined {
  let stat: Stats;
  try {
    stat = fstatSync(fd);
  } catch {
    return undefined;
  }
  if (stat.isSocket()) return { fd, kind: "socket" };
  if (!stat.isFIFO() && !stat.isCharacterDevice()) return { fd, kind: "file" };
  const reopened = shim.xt_stream_reopen(fd, writable ? 1 : 0);
  return reopened < 0 ? { fd, kind: "shared" } : { fd: reopened, kind: "nonblocking" };
}

/** Returns the read end and the write end. */
function makePipe(): [number, number] {
  const fds = new Int32Array(new ArrayBuffer(8));
  check(shim.xt_stream_pipe(fds), "make a pipe");
  return [fds[0], fds[1]];
}

function spawn(argv: readonly string[], childIn: number, childOut: number): Bun.Subprocess {
  try {
    return Bun.spawn([...argv], { stdio: [childIn, childOut, "inherit"] });
  } catch (error) {
    throw new XentoolError("environment", `cannot run ${argv[0]}`, {}, error);
  }
}

function nothing(): void {}

function closeOnce(fds: number[]): () => void {
  return () => closeAll(...fds.splice(0));
}

function closeAll(...fds: number[]): void {
  for (const fd of fds) closeSync(fd);
}
