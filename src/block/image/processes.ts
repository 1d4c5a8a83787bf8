// Finds the processes that have an image open, to report who holds the lock that we did not get. The kernel does not
// show who owns an OFD lock (its pid is -1), but lists the locks of each open file in /proc/PID/fdinfo.
import { readFileSync, readdirSync, readlinkSync, realpathSync } from "node:fs";
import { attempt } from "./attempt.ts";
import { isSame, THIS_HOST, type HostFiles, type Identity } from "./host-uses.ts";

export interface ImageProcess {
  readonly pid: number;
  readonly parent: number;
  readonly name: string;
  readonly locks: boolean;
  /** Its descriptors for the image. */
  readonly fds: readonly number[];
}

/**
 * Lists lock holders first. Leaves out processes that we may not inspect, and our own descriptor `except`, with which
 * we just tried to take the lock.
 */
export function processesWith(
  image: Identity,
  path: string,
  except: number | undefined,
  host: HostFiles = THIS_HOST,
): readonly ImageProcess[] {
  const real = attempt(() => realpathSync(path));
  const among = (pids: readonly string[]): ImageProcess[] =>
    pids.flatMap((pid) => lookInto(pid, image, real, except, host) ?? []);
  const owners = among(lockOwners(image, host));
  const found = owners.length > 0 ? owners : among(allProcesses(host));
  return found.sort((a, b) => Number(b.locks) - Number(a.locks));
}

function lookInto(
  pid: string,
  image: Identity,
  path: string | undefined,
  except: number | undefined,
  host: HostFiles,
): ImageProcess | undefined {
  const dir = `${host.proc}/${pid}`;
  const own = Number(pid) === process.pid ? String(except) : undefined;
  const open = (attempt(() => readdirSync(`${dir}/fd`)) ?? [])
    .filter((fd) => fd !== own)
    .map((fd) => ({ fd, locks: hasLock(dir, fd, image) }));
  // Only likely descriptors are examined: other files may be on a file server that is gone.
  const its = open
    .filter(({ fd, locks }) => locks || attempt(() => readlinkSync(`${dir}/fd/${fd}`)) === path)
    .filter(({ fd }) => isSame(image, `${dir}/fd/${fd}`));
  if (its.length === 0) return undefined;
  return {
    pid: Number(pid),
    parent: attempt(() => parentIn(readFileSync(`${dir}/stat`, "utf8"))) ?? 0,
    name: attempt(() => readFileSync(`${dir}/comm`, "utf8").trimEnd()) ?? "?",
    locks: its.some((it) => it.locks),
    fds: its.map(({ fd }) => Number(fd)),
  };
}

/** Behind the name, which may contain anything, come the state and the parent. */
function parentIn(stat: string): number {
  return Number(/^.*\) \S (\d+)/s.exec(stat)?.[1]);
}

function allProcesses(host: HostFiles): string[] {
  return (attempt(() => readdirSync(host.proc)) ?? []).filter((name) => /^[0-9]+$/.test(name));
}

/**
 * Owners of the locks on the file in the kernel's table, i.e. those taken by flock. They save inspecting every
 * process.
 */
function lockOwners(image: Identity, host: HostFiles): string[] {
  const table = attempt(() => readFileSync(`${host.proc}/locks`, "utf8")) ?? "";
  const owners = [...table.matchAll(/ ([0-9]+) [0-9a-f]+:[0-9a-f]+:([0-9]+) [0-9]+ [0-9A-Z]+$/gm)]
    .filter(([, , ino]) => Number(ino) === image.ino)
    .map(([, pid = ""]) => pid);
  return [...new Set(owners)];
}

/** "lock:  1: OFDLCK ADVISORY  READ -1 fe:00:2147023 100 101" */
function hasLock(dir: string, fd: string, image: Identity): boolean {
  const text = attempt(() => readFileSync(`${dir}/fdinfo/${fd}`, "utf8")) ?? "";
  return text.split("\n").some((line) => line.startsWith("lock:") && line.includes(`:${image.ino} `));
}
