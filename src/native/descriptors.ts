// Hands open files to another process of ours (csrc/descriptors.c). Each message has a number that both ends know from
// elsewhere.
import { XentoolError } from "../core/errors.ts";
import { XT_DESCRIPTORS_MAX } from "./abi.ts";
import { check, shim } from "./shim.ts";

export interface SocketPair {
  readonly ours: number;
  /** For a process that we start. */
  readonly theirs: number;
}

/** Connected sockets, for descriptors or for bytes. The caller closes both. */
export function socketPair(kind: "descriptors" | "bytes"): SocketPair {
  const ends = new Int32Array(2);
  check(
    shim.xt_descriptors_pair(ends, kind === "bytes" ? 1 : 0),
    "make sockets for a process",
    "environment",
  );
  return { ours: ends[0], theirs: ends[1] };
}

/** Keeps what a process was started with from what it starts. */
export function adoptDescriptor(fd: number): void {
  check(shim.xt_descriptors_adopt(fd), "use what this process was started with", "environment");
}

/** They stay open here, too. Throws `environment` when the other end takes none. */
export function sendDescriptors(socket: number, number: number, fds: readonly number[]): void {
  const sent = shim.xt_descriptors_send(socket, number, new Int32Array(fds), fds.length);
  check(sent, "hand over what is open", "environment");
}

/** The next ones, of which we know that they have been sent under this number. */
export function receiveDescriptors(socket: number, number: number): number[] {
  const numbers = new Uint32Array(1);
  const fds = new Int32Array(XT_DESCRIPTORS_MAX);
  const count = check(shim.xt_descriptors_receive(socket, numbers, fds), "take what is open", "environment");
  if (numbers[0] !== number)
    throw new XentoolError("bug", "other descriptors than those that were asked for");
  return [...fds.subarray(0, count)];
}
