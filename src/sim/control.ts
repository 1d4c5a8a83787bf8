// The host's control socket: JSON, one object per line. A process that attaches says so and keeps the connection open;
// when the connection ends, the host knows that the process died. Tools use it to query the status, manage domains and
// stop the host.
import { within } from "../core/deadline.ts";
import { codeOf, XentoolError } from "../core/errors.ts";
import { noSimulatedHost } from "../platform/sim.ts";
import { CONTROL_TIMEOUT_MS, CONTROL_LINE_BYTES_MAX } from "./bounds.ts";

export type ControlRequest =
  | { readonly op: "status" }
  | { readonly op: "stop" }
  | { readonly op: "createDomain"; readonly domid?: number; readonly name?: string }
  | { readonly op: "destroyDomain"; readonly domid: number };

export type ControlReply =
  { readonly ok: true; readonly result: unknown } | { readonly ok: false; readonly error: string };

export interface ControlHandlers {
  /** Handles a tool's request. What it returns or throws becomes the reply. */
  request(request: ControlRequest): Promise<unknown>;
  /** A process could not send an event itself: send what is pending. */
  undelivered(): void;
  /** The connection of the process in `slot` ended. */
  detached(slot: number, generation: number): void;
}

interface ConnectionState {
  text: string;
  attached: { slot: number; generation: number } | undefined;
}

export interface ControlSocket {
  close(): void;
}

/** Listens at `path`. Fails with `environment` if it cannot. */
export function listenForControl(path: string, handlers: ControlHandlers): ControlSocket {
  try {
    const listener = Bun.listen<ConnectionState>({
      unix: path,
      socket: {
        open(socket) {
          socket.data = { text: "", attached: undefined };
        },
        data(socket, bytes) {
          const lines = takeLines(socket.data, bytes);
          if (lines === undefined) socket.terminate();
          else for (const line of lines) handleLine(socket, line, handlers);
        },
        close(socket) {
          const { attached } = socket.data;
          socket.data.attached = undefined;
          handlers.detached(attached?.slot ?? 0, attached?.generation ?? 0);
        },
      },
    });
    return { close: () => listener.stop(true) };
  } catch (error) {
    throw new XentoolError("environment", `cannot listen at ${path}`, { path }, error);
  }
}

/** The complete lines received so far; undefined if one is too long. */
function takeLines(state: ConnectionState, bytes: Uint8Array): string[] | undefined {
  const lines = (state.text + new TextDecoder().decode(bytes)).split("\n");
  state.text = lines.pop() as string;
  return state.text.length > CONTROL_LINE_BYTES_MAX ? undefined : lines;
}

function handleLine(socket: Bun.Socket<ConnectionState>, line: string, handlers: ControlHandlers): void {
  let message: unknown;
  try {
    message = JSON.parse(line);
  } catch {
    socket.terminate();
    return;
  }
  const attach = asAttach(message);
  if (attach !== undefined) {
    socket.data.attached = attach;
    return;
  }
  if (isRecord(message) && message["op"] === "deliver") {
    handlers.undelivered();
    return;
  }
  const request = asRequest(message);
  const work =
    request === undefined ? Promise.reject(new Error("unknown request")) : handlers.request(request);
  const answer = (reply: ControlReply): void => void socket.end(`${JSON.stringify(reply)}\n`);
  work.then(
    (result) => answer({ ok: true, result: result ?? null }),
    (error: unknown) => answer({ ok: false, error: error instanceof Error ? error.message : String(error) }),
  );
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

function asAttach(message: unknown): { slot: number; generation: number } | undefined {
  if (!isRecord(message) || message["op"] !== "attach") return undefined;
  const { slot, generation } = message;
  return typeof slot === "number" && typeof generation === "number" ? { slot, generation } : undefined;
}

function asRequest(message: unknown): ControlRequest | undefined {
  if (!isRecord(message)) return undefined;
  const { op, domid, name } = message;
  if (op === "status" || op === "stop") return { op };
  const isDomid = typeof domid === "number" && Number.isInteger(domid);
  if (op === "destroyDomain" && isDomid) return { op, domid };
  if (op !== "createDomain") return undefined;
  return { op, ...(isDomid ? { domid } : {}), ...(typeof name === "string" ? { name } : {}) };
}

/** What connecting fails with if there is no host, or none any more. */
const NOBODY_LISTENS: ReadonlySet<string> = new Set(["ENOENT", "ECONNREFUSED"]);

/**
 * Sends a request to the host in `dir`. Fails with `environment` if no host runs there, `timeout` if it does not reply
 * in time, and `io` with the host's message if it refuses.
 */
export async function askHost(
  dir: string,
  request: ControlRequest,
  timeoutMs = CONTROL_TIMEOUT_MS,
): Promise<unknown> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  let text = "";
  const fail = (): void => reject(new XentoolError("io", `the simulated host in ${dir} hung up`, { dir }));
  const socket = await Bun.connect({
    unix: `${dir}/host.sock`,
    socket: {
      data(_socket, bytes) {
        text += new TextDecoder().decode(bytes);
        if (text.includes("\n")) resolve(text);
      },
      close: fail,
      error: fail,
    },
  }).catch((error: unknown) => {
    throw NOBODY_LISTENS.has(codeOf(error)) ? noSimulatedHost(dir) : noSimulatedHost(dir, error);
  });
  const late = (): XentoolError =>
    new XentoolError("timeout", `the simulated host in ${dir} did not answer`, { dir, timeoutMs });
  try {
    socket.write(`${JSON.stringify(request)}\n`);
    return unwrapReply(await within(timeoutMs, promise, late), dir);
  } finally {
    socket.end();
  }
}

function unwrapReply(text: string, dir: string): unknown {
  const reply = JSON.parse(text.slice(0, text.indexOf("\n"))) as ControlReply;
  if (reply.ok) return reply.result;
  throw new XentoolError("io", reply.error, { dir });
}
