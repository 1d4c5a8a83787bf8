// NBD URIs: nbd://HOST[:PORT]/EXPORT and nbd+unix:///EXPORT?socket=PATH.
import { XentoolError } from "../../../core/errors.ts";

const DEFAULT_PORT = 10809;

export interface NbdAddress {
  /** A host's name or number, or the path of a unix socket. */
  readonly address: string;
  /** Undefined: `address` is a path. */
  readonly port: number | undefined;
  readonly exportName: string;
}

/** Throws `usage`. */
export function parseNbdUri(uri: string): NbdAddress {
  const [, scheme, rest] = /^([a-z]+(?:\+[a-z]+)?):\/\/(.*)$/s.exec(uri) ?? [];
  if (rest === undefined) throw refuse(uri, "it is not SCHEME://…");
  if (scheme !== "nbd" && scheme !== "nbd+unix")
    throw refuse(uri, `only nbd and nbd+unix are supported, not ${scheme}`);
  const [, authority, path, query] = /^([^/?]*)(?:\/([^?]*))?(?:\?(.*))?$/s.exec(rest) ?? [];
  const exportName = decode(uri, path ?? "");
  if (Buffer.byteLength(exportName) > 4096) throw refuse(uri, "an export's name has at most 4096 bytes");
  if (scheme === "nbd+unix") return { address: socketOf(uri, authority, query), port: undefined, exportName };
  if (query !== undefined) throw refuse(uri, "only nbd+unix has parameters");
  return { ...hostOf(uri, authority ?? ""), exportName };
}

function socketOf(uri: string, authority: string | undefined, query: string | undefined): string {
  if (authority !== "") throw refuse(uri, "nbd+unix has no host: nbd+unix:///EXPORT?socket=PATH");
  const [, path] = /^socket=([^&]+)$/.exec(query ?? "") ?? [];
  if (path === undefined) throw refuse(uri, "nbd+unix needs ?socket=PATH and no other parameter");
  return decode(uri, path);
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
