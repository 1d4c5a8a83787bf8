// Which processes have an image open: to say who holds the lock that we did not get. The kernel does not tell
// whose an OFD lock is (its pid is -1), but lists the locks of each open file in /proc/PID/fdinfo.
import { readFileSync, readdirSync, readlinkSync, realpathSync } from "node:fs";
import { isSame, THIS_HOST, type HostFiles, type Identity } from "./host-uses.ts";

export interface ImageProcess {
  readonly pid: number;
  readonly name: string;
  readonly locks: boolean;
  /** Its descriptors of the image. */
  readonly fds: readonly number[];
}

/** Those that hold a lock come first. Processes that we may not look into are left out. */
export function processesWith(image: Identity, path: string, host: HostFiles = THIS_HOST): ImageProcess[] {
  const real = attempt(() => realpathSync(path));
  const found: ImageProcess[] = [];
  for (const pid of (attempt(() => readdirSync(host.proc)) ?? []).filter((name) => /^[0-9]+$/.test(name))) {
    const dir = `${host.proc}/${pid}`;
    const open = (attempt(() => readdirSync(`${dir}/fd`)) ?? []).map((fd) => ({
      fd,
      locks: hasLock(dir, fd, image),
    }));
    // Only what may be it is looked at closely: other files may be on a server that is gone.
    const its = open
      .filter(({ fd, locks }) => locks || attempt(() => readlinkSync(`${dir}/fd/${fd}`)) === real)
      .filter(({ fd }) => attempt(() => isSame(image, `${dir}/fd/${fd}`)) === true);
    if (its.length === 0) continue;
    const name = attempt(() => readFileSync(`${dir}/comm`, "utf8").trimEnd()) ?? "?";
    const locks = its.some((it) => it.locks);
    found.push({ pid: Number(pid), name, locks, fds: its.map(({ fd }) => Number(fd)) });
  }
  return found.sort((a, b) => Number(b.locks) - Number(a.locks));
}

/** "lock:  1: OFDLCK ADVISORY  READ -1 fe:00:2147023 100 101" */
function hasLock(dir: string, fd: string, image: Identity): boolean {
  const text = attempt(() => readFileSync(`${dir}/fdinfo/${fd}`, "utf8")) ?? "";
  return text.split("\n").some((line) => line.startsWith("lock:") && line.includes(`:${image.ino} `));
}

/** Processes end, and descriptors are closed, while they are looked at. */
function attempt<T>(look: () => T): T | undefined {
  try {
    return look();
  } catch {
    return undefined;
  }
}
