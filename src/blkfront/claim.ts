// Who uses one of our disks. A domain has many who could, its kernel first, and the state in xenstore does not tell a
// frontend that lives from one that was killed. So each `blkfront` holds a lock with its ring's name in it: a lock
// that is free and names the ring in xenstore is that of a dead one.
import { existsSync, readlinkSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { pause } from "../core/deadline.ts";
import { XentoolError } from "../core/errors.ts";
import type { EvtchnPort } from "../core/types.ts";
import { takeLock, type LockFile } from "../native/lock-file.ts";
import type { PlatformDescriptor } from "../platform/platform.ts";

const LOOK_AGAIN_MS = 50;
const SYSFS = "/sys";

/** Where the processes that use disks keep their locks: with the simulated host, or in /run. */
function claimsDir(platform: PlatformDescriptor): string {
  return platform.name === "sim" ? join(platform.dir, "blkfront") : "/run/xentool/blkfront";
}

export class FrontClaim {
  readonly #path: string;
  readonly #kernelDevice: string | undefined;
  #lock: LockFile | undefined;

  constructor(platform: PlatformDescriptor, devid: number, sysfs = SYSFS) {
    this.#path = join(claimsDir(platform), `${platform.domid}-${devid}.lock`);
    if (platform.name === "xen") this.#kernelDevice = join(sysfs, "bus/xen/devices", `vbd-${devid}`);
  }

  /** The kernel's driver that has the disk, connected or about to be. */
  get kernelDriver(): string | undefined {
    if (this.#kernelDevice === undefined) return undefined;
    const driver = join(this.#kernelDevice, "driver");
    return existsSync(driver) ? basename(readlinkSync(driver)) : undefined;
  }

  /** Makes the kernel let go of the disk, as hot-unplug would. */
  takeFromKernel(): void {
    if (this.kernelDriver === undefined || this.#kernelDevice === undefined) return;
    try {
      writeFileSync(join(this.#kernelDevice, "driver/unbind"), basename(this.#kernelDevice));
    } catch (error) {
      throw new XentoolError("environment", "the kernel does not let go of the disk", {}, error);
    }
  }

  /** Takes the lock unless a process has it; whether it is ours. */
  tryHold(): boolean {
    this.#lock ??= takeLock(this.#path);
    return this.#lock !== undefined;
  }

  /** Waits until the process that has the lock has ended; it has lost the disk and will soon. */
  async hold(timeoutMs: number, signal: AbortSignal | undefined): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    while (!this.tryHold()) {
      if (performance.now() >= deadline)
        throw new XentoolError("timeout", "the process that used the disk does not end");
      if (!(await pause(LOOK_AGAIN_MS, signal)))
        throw new XentoolError("cancelled", "stopped while another process was to let go of the disk");
    }
  }

  /** Whether the ring with this event channel is that of a `blkfront` that was killed. */
  isAbandoned(port: string | null): boolean {
    return port !== null && port === this.#lock?.found;
  }

  /** Notes whose ring it is, for the time after we were killed. */
  record(port: EvtchnPort): void {
    this.#lock?.write(String(port));
  }

  release(): void {
    this.#lock?.release();
    this.#lock = undefined;
  }
}
