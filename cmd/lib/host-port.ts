// HOST:PORT on the command line.
import { XentoolError } from "../../src/core/errors.ts";

export interface HostPort {
  readonly host: string;
  readonly port: number;
}

/** Parses HOST:PORT or [HOST]:PORT. Throws `usage`, which names `option`. */
export function parseHostPort(option: string, text: string): HostPort {
  const [, bracketed, bare, digits] = /^(?:\[([^\]]+)\]|([^:]+)):([0-9]{1,5})$/.exec(text) ?? [];
  const host = bracketed ?? bare;
  const port = Number(digits);
  if (host === undefined || port > 0xffff)
    throw new XentoolError("usage", `${option} wants HOST:PORT, not ${text}`);
  return { host, port };
}
