// Tracks who uses one of our disks. A domain has many possible users, its kernel first, and the state in xenstore
// does not distinguish a living frontend from one that was killed. So each `blkfront` holds a lock that contains its
// ring's name: a free lock that names the ring in xenstore belongs to a dead frontend.
import { existsSync, readlinkSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { pause } from "../core/deadline.ts";
import { XentoolError } from "../core/errors.ts";
import type { EvtchnPort } from "../core/types.ts";
import { takeLock, type LockFile } from "../native/lock-file.ts";
import type { PlatformDescriptor } from "../platform/platform.ts";
import { CLAIM_AGAIN_MS } from "./bounds.ts";

const SYSFS = "/sys";

/** Where processes that use disks keep their locks: in the simulated host's directory, or in /run. */
export function claimsDir(platform: PlatformDescriptor): string {
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

  /** The kernel driver that has the disk, connected or about to be. */
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

  /** Takes the lock unless another process has it. Returns whether it is ours. */
  tryHold(): boolean {
    this.#lock ??= takeLock(this.#path);
    return this.#lock !== undefined;
  }

  /** Waits for the process that has the lock; it has lost the disk and will end soon. */
  async hold(timeoutMs: number, signal: AbortSignal | undefined): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    while (!this.tryHold()) {
      if (performance.now() >= deadline)
        throw new XentoolError("timeout", "the process that used the disk does not end");
      if (!(await pause(CLAIM_AGAIN_MS, signal)))
        throw new XentoolError("cancelled", "stopped while another process was to let go of the disk");
    }
  }

  /** Whether the ring with this event channel belongs to a `blkfront` that was killed. */
  isAbandoned(port: string | null): boolean {
    return port !== null && port === this.#lock?.found;
  }

  /** Records which ring is ours, in case we are killed. */
  record(port: EvtchnPort): void {
    this.#lock?.write(String(port));
  }

  release(): void {
    this.#lock?.release();
    this.#lock = undefined;
  }
}
