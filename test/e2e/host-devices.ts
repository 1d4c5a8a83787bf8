// Loop devices, mounts and swap of this machine, made for a test and gone after it.
import { expect } from "bun:test";
import { spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";

/** Runs a tool of the host's that has to succeed; what it prints. */
export function run(...argv: readonly string[]): string {
  const { status, stdout, stderr } = spawnSync(argv[0], argv.slice(1), {
    encoding: "utf8",
    env: { ...process.env, PATH: `${process.env["PATH"]}:/usr/sbin:/sbin` },
  });
  expect({ argv, status, stderr: status === 0 ? "" : stderr }).toEqual({ argv, status: 0, stderr: "" });
  return stdout.trim();
}

export class HostDevices {
  readonly #undo: (() => void)[] = [];

  /** A loop device over `file`; `options` are losetup's. */
  loop(file: string, ...options: readonly string[]): string {
    const device = run("losetup", "--find", "--show", ...options, file);
    this.#undo.push(() => run("losetup", "--detach", device));
    return device;
  }

  /** Mounts `what`, with an empty file system unless it has one, on `where`. */
  mount(what: string, where: string, ...options: readonly string[]): void {
    mkdirSync(where, { recursive: true });
    run("mount", ...options, what, where);
    this.#undo.push(() => run("umount", where));
  }

  swapOn(device: string): void {
    run("mkswap", device);
    run("swapon", device);
    this.#undo.push(() => run("swapoff", device));
  }

  /** Takes everything down, the last first. */
  remove(): void {
    for (const undo of this.#undo.splice(0).reverse()) undo();
  }
}
