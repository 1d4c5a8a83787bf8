// A client's operations on xenstore nodes, inside or outside a transaction: each is one request and the interpretation
// of its reply. client.ts and transaction.ts determine where the requests go.
import { XentoolError } from "../core/errors.ts";
import {
  decodeStrings,
  decodeText,
  encodePathAndValue,
  encodeStrings,
  encodeText,
  formatPermission,
  parsePermission,
  XS_DIRECTORY,
  XS_DIRECTORY_PART,
  XS_GET_PERMS,
  XS_MKDIR,
  XS_READ,
  XS_RM,
  XS_SET_PERMS,
  XS_WRITE,
  xsTypeName,
  type XsPermission,
} from "../protocol/xs-wire.ts";
import { DIRECTORY_ATTEMPTS } from "./bounds.ts";
import { errnoOf } from "./errors.ts";

/** The error for a reply that no xenstored may send. */
export function malformedReply(type: number, subject: string): XentoolError {
  return new XentoolError(
    "protocol",
    `xenstored sent a malformed reply to ${xsTypeName(type) ?? type} ${subject}`,
    {
      path: subject,
    },
  );
}

/** The NUL-terminated strings of a reply; oxenstored omits the last NUL. */
export function replyStrings(reply: Uint8Array): string[] {
  return decodeStrings(reply) ?? decodeText(reply).split("\0");
}

export abstract class XenstoreOperations {
  /**
   * Sends one request and returns its reply's payload. `subject` is named in errors. An error reply becomes an
   * XentoolError whose `context.errno` is the errno's name: `environment` for EACCES and EPERM, otherwise `io`.
   */
  protected abstract request(type: number, payload: Uint8Array, subject: string): Promise<Uint8Array>;

  /** The value of a node, as text. A missing node is an `io` error with errno ENOENT. */
  async read(path: string): Promise<string> {
    return decodeText(await this.readBytes(path));
  }

  /** The value of a node, or null if it does not exist. */
  async tryRead(path: string): Promise<string | null> {
    return orOnMissing(this.read(path), null);
  }

  /** The value of a node, as bytes. */
  readBytes(path: string): Promise<Uint8Array> {
    return this.request(XS_READ, encodeStrings(path), path);
  }

  /** Sets the value of a node. Creates the node and its parents if they are missing. */
  write(path: string, value: string): Promise<void> {
    return this.writeBytes(path, encodeText(value));
  }

  async writeBytes(path: string, value: Uint8Array): Promise<void> {
    await this.request(XS_WRITE, encodePathAndValue(path, value), path);
  }

  /** Creates an empty node unless it exists. */
  async mkdir(path: string): Promise<void> {
    await this.request(XS_MKDIR, encodeStrings(path), path);
  }

  /** Removes a node with everything below it. A missing node is not an error as long as its parent exists. */
  async rm(path: string): Promise<void> {
    await this.request(XS_RM, encodeStrings(path), path);
  }

  /** Whether the node exists. Fails with `environment` if reading it is not allowed. */
  async exists(path: string): Promise<boolean> {
    return orOnMissing(
      this.readBytes(path).then(() => true),
      false,
    );
  }

  /** The names of the nodes directly below `path`, in the server's order. */
  async directory(path: string): Promise<string[]> {
    try {
      const names = replyStrings(await this.request(XS_DIRECTORY, encodeStrings(path), path));
      return names.filter((name) => name !== "");
    } catch (error) {
      if (errnoOf(error) !== "E2BIG") throw error;
      return this.#directoryInParts(path);
    }
  }

  /** The permissions: the owner first (its access applies to all others), then the domains with their own access. */
  async getPerms(path: string): Promise<XsPermission[]> {
    const texts = replyStrings(await this.request(XS_GET_PERMS, encodeStrings(path), path));
    return texts.map((text) => {
      const permission = parsePermission(text);
      if (permission === undefined) throw malformedReply(XS_GET_PERMS, path);
      return permission;
    });
  }

  /** Replaces the permissions; the first entry names the owner. */
  async setPerms(path: string, permissions: readonly XsPermission[]): Promise<void> {
    await this.request(XS_SET_PERMS, encodeStrings(path, ...permissions.map(formatPermission)), path);
  }

  async #directoryInParts(path: string): Promise<string[]> {
    for (let attempt = 0; attempt < DIRECTORY_ATTEMPTS; attempt++) {
      const names = await this.#readParts(path);
      if (names !== undefined) return names;
    }
    throw new XentoolError("io", `xenstore directory ${path} changes faster than it can be read`, { path });
  }

  /** Undefined if the directory's generation changed between two parts. */
  async #readParts(path: string): Promise<string[] | undefined> {
    const names: string[] = [];
    let generation: string | undefined;
    for (let offset = 0; ;) {
      const reply = await this.request(XS_DIRECTORY_PART, encodeStrings(path, String(offset)), path);
      const separator = reply.indexOf(0);
      if (separator < 0) throw malformedReply(XS_DIRECTORY_PART, path);
      const current = decodeText(reply.subarray(0, separator));
      if (generation !== undefined && current !== generation) return undefined;
      generation = current;
      const strings = decodeStrings(reply.subarray(separator + 1));
      if (strings === undefined || strings.length === 0) throw malformedReply(XS_DIRECTORY_PART, path);
      const last = strings.at(-1) === "";
      if (last) strings.pop();
      names.push(...strings.filter((name) => name !== ""));
      if (last) return names;
      offset += reply.length - separator - 1;
    }
  }
}

/** The result of `promise`, or `fallback` if xenstored replied ENOENT. */
async function orOnMissing<T, F>(promise: Promise<T>, fallback: F): Promise<T | F> {
  try {
    return await promise;
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return fallback;
    throw error;
  }
}
