// How the scripts of host-files.ts learn that the daemon is running, and how the kernel is kept from binding
// devices that are ours.
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { RULE } from "./host-files.ts";

const WATCHING = "/run/xentool/watching";
const AUTOPROBE = "/sys/bus/xen-backend/drivers_autoprobe";
/** Where udev reads rules. */
const RULES = ["/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib"].map(
  (dir) => `${dir}/udev/rules.d/${RULE}`,
);

/**
 * Tells the scripts that the daemon is running, and tells the kernel not to bind new devices by itself, since the
 * udev rule does that from now on. Without the rule the kernel's behaviour is not changed. Dispose the result when
 * the daemon stops.
 */
export function announceWatching(): Disposable {
  mkdirSync(dirname(WATCHING), { recursive: true });
  if (!isAnnounced()) writeFileSync(WATCHING, String(process.pid));
  if (RULES.some((path) => existsSync(path))) bindByKernel(false);
  return { [Symbol.dispose]: stopAnnouncing };
}

/**
 * From now on that process is the daemon. A script that looked in between would find none, and have the attachment of a
 * disk fail; so the number is replaced in one step.
 */
export function handWatchingTo(pid: number): void {
  if (!existsSync(WATCHING)) return;
  try {
    writeFileSync(`${WATCHING}.next`, String(pid));
    renameSync(`${WATCHING}.next`, WATCHING);
  } catch {
    // That process writes its own number a moment later.
  }
}

/** A successor may have written its own number, or have been handed ours. */
function stopAnnouncing(): void {
  if (isAnnounced()) rmSync(WATCHING, { force: true });
}

/** Whether we are the one that runs. */
function isAnnounced(): boolean {
  return existsSync(WATCHING) && readFileSync(WATCHING, "utf8") === String(process.pid);
}

/**
 * Whether the kernel binds each new backend device to a driver by itself. Returns false if there is no such kernel.
 */
export function bindByKernel(binds: boolean): boolean {
  if (!existsSync(AUTOPROBE)) return false;
  writeFileSync(AUTOPROBE, binds ? "1" : "0");
  return true;
}
