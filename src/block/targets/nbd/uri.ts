// NBD URIs, as the NBD project and libnbd define them: nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, and
// nbds for TLS.
import { XentoolError } from "../../../core/errors.ts";

const DEFAULT_PORT = 10809;

export interface NbdAddress {
  /** A host's name or number, or the path of a unix socket. */
  readonly address: string;
  /** Undefined: `address` is a path. */
  readonly port: number | undefined;
  readonly exportName: string;
  readonly tls?: NbdTls;
}

export interface NbdTls {
  /** Which the server's certificate must be for. */
  readonly hostname: string;
  /** A directory with ca-cert.pem, and client-cert.pem and client-key.pem if the server wants them. */
  readonly certificates?: string | undefined;
}

/** Throws `usage`. */
export function parseNbdUri(uri: string): NbdAddress {
  const [, scheme, rest] = /^([a-z]+(?:\+[a-z]+)?):\/\/(.*)$/s.exec(uri) ?? [];
  if (rest === undefined) throw refuse(uri, "it is not SCHEME://…");
  const [, s, unix] = /^nbd(s?)(\+unix)?$/.exec(scheme ?? "") ?? [];
  if (s === undefined)
    throw refuse(uri, `only nbd, nbds, nbd+unix and nbds+unix are supported, not ${scheme}`);
  const [, authority = "", path = "", query] = /^([^/?]*)(?:\/([^?]*))?(?:\?(.*))?$/s.exec(rest) ?? [];
  const exportName = decode(uri, path);
  if (Buffer.byteLength(exportName) > 4096) throw refuse(uri, "an export's name has at most 4096 bytes");
  const parameters = parametersOf(uri, query);
  const at = unix === undefined ? hostOf(uri, authority) : socketOf(uri, authority, parameters.get("socket"));
  const known = [...(unix === undefined ? [] : ["socket"]), ...(s === "s" ? TLS_PARAMETERS : [])];
  const unknown = [...parameters.keys()].find((name) => !known.includes(name));
  if (unknown?.startsWith("tls-psk") === true)
    throw refuse(uri, "pre-shared keys are not supported, only certificates");
  if (unknown !== undefined) throw refuse(uri, `${scheme} has no parameter ${JSON.stringify(unknown)}`);
  if (s === "") return { ...at, exportName };
  const hostname = parameters.get("tls-hostname") ?? (unix === undefined ? at.address : undefined);
  if (hostname === undefined)
    throw refuse(uri, "nbds+unix needs tls-hostname=NAME, which the server's certificate is for");
  const certificates = parameters.get("tls-certificates");
  if (certificates !== undefined && !certificates.startsWith("/"))
    throw refuse(uri, "tls-certificates must be an absolute path");
  return { ...at, exportName, tls: { hostname, certificates } };
}

const TLS_PARAMETERS = ["tls-hostname", "tls-certificates"];

function parametersOf(uri: string, query: string | undefined): ReadonlyMap<string, string> {
  const parameters = new Map<string, string>();
  for (const parameter of query === undefined ? [] : query.split("&")) {
    const [, name, value] = /^([^=]+)=(.+)$/s.exec(parameter) ?? [];
    if (name === undefined || value === undefined)
      throw refuse(uri, "its parameters are not NAME=VALUE&NAME=VALUE");
    if (parameters.has(name)) throw refuse(uri, `it has ${name} twice`);
    parameters.set(name, decode(uri, value));
  }
  return parameters;
}

function socketOf(uri: string, authority: string, path: string | undefined) {
  if (authority !== "") throw refuse(uri, "a unix socket has no host: nbd+unix:///EXPORT?socket=PATH");
  if (path === undefined) throw refuse(uri, "it needs ?socket=PATH");
  return { address: path, port: undefined };
}

function hostOf(uri: string, authority: string): { readonly address: string; readonly port: number } {
  const [, bracketed, plain, digits] =
    /^(?:\[([0-9a-fA-F:.]+)\]|([^:@[\]]+))(?::([0-9]{1,5}))?$/.exec(authority) ?? [];
  const address = bracketed ?? plain;
  if (address === undefined) throw refuse(uri, "it names no HOST or HOST:PORT");
  const port = digits === undefined ? DEFAULT_PORT : Number(digits);
  if (port === 0 || port > 65535) throw refuse(uri, `${port} is no port`);
  return { address, port };
}

function decode(uri: string, text: string): string {
  let decoded: string;
  try {
    decoded = decodeURIComponent(text);
  } catch {
    throw refuse(uri, "its percent signs do not encode UTF-8");
  }
  if (decoded.includes("\0")) throw refuse(uri, "it contains a zero byte");
  return decoded;
}

function refuse(uri: string, why: string): XentoolError {
  return new XentoolError("usage", `${JSON.stringify(uri)} cannot be served: ${why}`);
}
