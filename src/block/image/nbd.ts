// An NBD export as an image: asked for its size and flags when a disk is offered.
import { XentoolError } from "../../core/errors.ts";
import { moduleLogger } from "../../core/log.ts";
import type { NbdImage } from "../image.ts";
import { probeServer } from "../targets/nbd/probe.ts";
import { infoOf } from "../targets/nbd/target.ts";
import type { SecureAddress } from "../targets/nbd/tls-relay.ts";
import { parseNbdUri, type NbdAddress } from "../targets/nbd/uri.ts";
import { checkSize } from "./abilities.ts";
import { COMMAND_WAYS, type Ways } from "./open.ts";

const logger = moduleLogger("nbd");

/** Connections to one export, used where its server says that it serves all of them alike. */
const DEFAULT_CONNECTIONS = 4;

/** How a data plane reaches a server by TLS. */
export interface Line {
  /** Returns the path of a socket behind which the server is. */
  open(to: SecureAddress): Promise<string>;
}

export interface NbdImageOptions {
  /** What its user calls it; by default its URI. */
  readonly name?: string;
  readonly readOnly: boolean;
  readonly sectorSizeBytes: number;
  /** At most. */
  readonly connections?: number | undefined;
  /** Ends the wait for a server that does not answer. */
  readonly stop?: AbortSignal | undefined;
  /** For nbds. */
  readonly line?: Line | undefined;
  readonly ways?: Ways | undefined;
}

/** Whether it is meant as one: of those that are not supported, `parseNbdUri` says so. */
export function isNbdUri(path: string): boolean {
  return /^nbds?(\+[a-z]+)?:/.test(path);
}

/** Throws `usage` when the export can be no disk with such sectors, otherwise as `probeServer`. */
export async function openNbdImage(uri: string, options: NbdImageOptions): Promise<NbdImage> {
  const { name = uri, readOnly, sectorSizeBytes, connections = DEFAULT_CONNECTIONS } = options;
  const { line, stop, ways = COMMAND_WAYS } = options;
  const address = await addressOf(parseNbdUri(uri), line);
  const seen = await probeServer(address, stop);
  checkSize(name, seen.sizeBytes, sectorSizeBytes);
  const info = infoOf(seen, readOnly);
  if (info.sizeBytes === 0)
    throw new XentoolError(
      "usage",
      `${name} has less than one block of its server, ${seen.minBlockBytes} bytes`,
    );
  if (info.sizeBytes < seen.sizeBytes)
    logger.warn(
      `${name}: its last ${seen.sizeBytes - info.sizeBytes} bytes are less than a block of the server, and no part of the disk`,
    );
  if (info.readOnly && !readOnly)
    throw new XentoolError("environment", `${name} is read-only; ${ways.readOnly} serves it`);
  return { kind: "nbd", path: uri, address, seen, connections, isOurs: false, info };
}

async function addressOf({ tls, ...server }: NbdAddress, line: Line | undefined): Promise<NbdAddress> {
  if (tls === undefined) return server;
  if (line === undefined) throw new XentoolError("bug", "nobody is there to encrypt");
  return { address: await line.open({ ...server, tls }), port: undefined, exportName: server.exportName };
}
