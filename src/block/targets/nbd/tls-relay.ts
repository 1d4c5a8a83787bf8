// Encrypts connections to an NBD server. A data plane only speaks plain NBD; it connects to a socket of ours, and we
// to the server, where everything from STARTTLS on is TLS, whose certificate and name are checked. A server that does
// not want TLS is not spoken to. When a connection fails, the client gets the reason in NBD's own words, as the
// refusal of an option.
import { once } from "node:events";
import { closeSync } from "node:fs";
import { connect, createServer, type NetConnectOpts, type Server, type Socket } from "node:net";
import { connect as connectTls, type TLSSocket } from "node:tls";
import { codeOf, describeError, XentoolError } from "../../../core/errors.ts";
import { escapeText } from "../../../core/log.ts";
import { shim } from "../../../native/shim.ts";
import {
  encodeGreeting,
  encodeOption,
  encodeOptionReply,
  NBD_OPT_STARTTLS,
  NBD_REP_ACK,
  OPTION_HEADER_BYTES,
  OPTION_REPLY_BYTES,
} from "../../../protocol/nbd.ts";
import { dialServer, whyNotDialled } from "./dial.ts";
import { flagsToAnswer, GREETING_BYTES, MAX_REPLY_BYTES, NOT_SECURE } from "./handshake.ts";
import { TlsIdentity } from "./tls-identity.ts";
import type { NbdAddress, NbdTls } from "./uri.ts";

/** For a server to answer, until the connection is secure. */
const PATIENCE_MS = 10_000;
/**
 * Connections of a disk at the same time, far more than it needs: those of planes that are gone may still wait for the
 * server. A guest's process may ask for any number, and they are sockets of the process that all guests share.
 */
const CLIENTS_MAX = 64;
/** For a server to take the last that a client sent before it closed its connection. */
const FAREWELL_MS = 1000;
/** How often a client is looked at from which nothing is read. */
const LOOK_MS = 1000;
const EPIPE = -32;
const NOTHING = new Uint8Array(1);
const CLIENT_FLAGS_BYTES = 4;
/** What a client of ours asks before it gives up. */
const MAX_OPTIONS = 2;

/** OpenSSL's codes for a certificate whose authority we do not know. */
const UNKNOWN_AUTHORITY: ReadonlySet<string> = new Set([
  "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
  "UNABLE_TO_GET_ISSUER_CERT",
  "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
  "SELF_SIGNED_CERT_IN_CHAIN",
  "DEPTH_ZERO_SELF_SIGNED_CERT",
]);

export interface SecureAddress extends NbdAddress {
  readonly tls: NbdTls;
}

/** A connection to a server, encrypted, where the next message is an option. */
interface Secured {
  readonly socket: TLSSocket;
  readonly greeting: Uint8Array;
}

export class TlsRelay {
  readonly #server: Server;
  readonly #to: SecureAddress;
  readonly #identity: TlsIdentity;
  /** Our ends of all connections. */
  readonly #sockets = new Set<Socket>();

  private constructor(to: SecureAddress) {
    this.#to = to;
    this.#identity = new TlsIdentity(to.tls);
    this.#server = createServer({ pauseOnConnect: true }, (local) => void this.#serve(local));
    this.#server.maxConnections = CLIENTS_MAX;
  }

  /** Whoever can connect to `path` can use the export: its directory must be private. */
  static async listen(path: string, to: SecureAddress): Promise<TlsRelay> {
    const relay = new TlsRelay(to);
    relay.#server.listen(path);
    await once(relay.#server, "listening");
    return relay;
  }

  /** Ends all connections. */
  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  async #serve(local: Socket): Promise<void> {
    this.#own(local);
    let secured: Secured | undefined;
    try {
      secured = await this.#connect();
      local.write(secured.greeting);
      // The server has had our flags already.
      await take(local, CLIENT_FLAGS_BYTES);
      join(local, secured.socket);
    } catch (error) {
      secured?.socket.destroy();
      await refuse(local, describeError(error)).catch(() => {});
      local.destroy();
    }
  }

  async #connect(): Promise<Secured> {
    const fd = await dialServer(this.#to);
    if (fd < 0) throw new XentoolError("io", whyNotDialled(fd));
    if (!this.#server.listening) {
      closeSync(fd);
      throw new XentoolError("cancelled", "nobody needs the server any more");
    }
    // Begun by the shim, so that TCP notices a host that vanishes: `connect` has no options for that. Its types do not
    // know `fd`.
    const plain = connect({ fd } as unknown as NetConnectOpts);
    this.#own(plain);
    const patience = setTimeout(
      () => plain.destroy(new Error(`no answer for ${PATIENCE_MS} ms`)),
      PATIENCE_MS,
    );
    try {
      const greeting = await startTls(plain);
      const socket = connectTls({ socket: plain, ...this.#identity.options });
      this.#own(socket);
      // What is being encrypted and not sent keeps it open.
      socket.on("close", () => plain.destroy());
      await untilSecured(socket);
      return { socket, greeting };
    } catch (error) {
      plain.destroy();
      throw withAdvice(error, this.#to.tls);
    } finally {
      clearTimeout(patience);
    }
  }

  #own(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on("close", () => this.#sockets.delete(socket));
    // What fails is seen where it is waited for, or as the end of both.
    socket.on("error", () => {});
  }
}

/** Without a directory only the public authorities are known, and a storage server's certificate is seldom of one. */
function withAdvice(error: unknown, { certificates }: NbdTls): unknown {
  if (certificates !== undefined || !UNKNOWN_AUTHORITY.has(codeOf(error))) return error;
  return new Error(`${describeError(error)}; name its authority with tls-certificates=DIR in the URI`);
}

/** Negotiates until the server is ready for TLS. Returns its greeting. */
async function startTls(plain: Socket): Promise<Uint8Array> {
  const greeting = await take(plain, GREETING_BYTES);
  const flags = Buffer.alloc(CLIENT_FLAGS_BYTES);
  flags.writeUInt32BE(flagsToAnswer(greeting));
  plain.write(Buffer.concat([flags, encodeOption(NBD_OPT_STARTTLS)]));
  const reply = await take(plain, OPTION_REPLY_BYTES);
  const expected = encodeOptionReply(NBD_OPT_STARTTLS, 0).subarray(0, 12);
  if (!reply.subarray(0, 12).equals(expected))
    throw new XentoolError("protocol", "the server broke the protocol in its reply to STARTTLS");
  const length = reply.readUInt32BE(16);
  if (reply.readUInt32BE(12) !== NBD_REP_ACK) {
    const said = length > 0 && length <= MAX_REPLY_BYTES ? await take(plain, length) : Buffer.alloc(0);
    throw new XentoolError(
      "environment",
      `the server refuses TLS${said.length > 0 ? `: ${escapeText(said.toString())}` : ""}`,
    );
  }
  // Anything that somebody on the way put here would count as if it had come by TLS.
  if (length !== 0 || plain.readableLength > 0)
    throw new XentoolError("protocol", "the server broke the protocol: data between STARTTLS and TLS");
  return greeting;
}

/** Passes on what either end sends, no faster than the other takes it, until one of them is gone. */
function join(local: Socket, server: TLSSocket): void {
  local.pipe(server);
  server.pipe(local);
  local.on("close", () => endSoon(server));
  server.on("close", () => local.destroySoon());
  if (local.destroyed) server.destroy();
  if (server.destroyed) local.destroy();
  noticeEndOf(local, server);
}

/** A server that takes nothing more keeps no connection of a client that is gone. */
function endSoon(server: TLSSocket): void {
  const late = setTimeout(() => server.destroy(), FAREWELL_MS);
  server.on("close", () => clearTimeout(late));
  server.destroySoon();
}

/**
 * While the server takes nothing, nothing is read from `local` either, and Bun does not tell that its other end is
 * closed. What that end sent last is given up: it will be sent again, on another connection.
 */
function noticeEndOf(local: Socket, server: TLSSocket): void {
  let looking: ReturnType<typeof setInterval> | undefined;
  const stop = (): void => clearInterval(looking);
  local.on("pause", () => {
    stop();
    looking = setInterval(() => isEndClosed(local) && local.destroy(), LOOK_MS);
  });
  server.on("drain", stop);
  local.on("close", stop);
}

/** Sends nothing; what it says is whether anything could be sent. */
function isEndClosed(local: Socket): boolean {
  // Its types do not know the descriptor. One that is being closed has none.
  const fd = (local as unknown as { _handle?: { fd: number } | null })._handle?.fd;
  return fd !== undefined && shim.xt_socket_send(fd, NOTHING, 0, NOTHING, 0) === EPIPE;
}

/** Answers as a server that refuses the client the export, with the reason. */
async function refuse(local: Socket, why: string): Promise<void> {
  local.write(encodeGreeting());
  await take(local, CLIENT_FLAGS_BYTES);
  for (let options = 0; options < MAX_OPTIONS; options++) {
    const header = await take(local, OPTION_HEADER_BYTES);
    await take(local, header.readUInt32BE(12));
    local.write(encodeOptionReply(header.readUInt32BE(8), NOT_SECURE, Buffer.from(escapeText(why))));
  }
  local.end();
}

/** The next `count` bytes. Leaves the socket paused, with what follows them. */
function take(socket: Socket, count: number): Promise<Buffer> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  let bytes = Buffer.alloc(0);
  const onData = (more: Buffer): void => {
    bytes = Buffer.concat([bytes, more]);
    if (bytes.length < count) return;
    socket.pause();
    done();
    if (bytes.length > count) socket.unshift(bytes.subarray(count));
    resolve(bytes.subarray(0, count));
  };
  const onGone = (error?: unknown): void => {
    done();
    reject(error instanceof Error ? error : new Error("the server closed the connection"));
  };
  const done = (): void => {
    socket.off("data", onData).off("error", onGone).off("close", onGone).off("end", onGone);
  };
  if (count === 0) return Promise.resolve(bytes);
  if (socket.destroyed) onGone();
  socket.on("data", onData).on("error", onGone).on("close", onGone).on("end", onGone);
  socket.resume();
  return promise;
}

/** Waits for the end of the TLS handshake. */
function untilSecured(socket: TLSSocket): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  socket.once("secureConnect", () => {
    if (socket.authorized) resolve();
    else reject(new Error("its certificate is not trusted"));
  });
  socket.once("error", reject);
  socket.once("close", () => reject(new Error("the server closed the connection")));
  return promise;
}
