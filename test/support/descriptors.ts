// What this process has open, for tests that assert that nothing is left; and whether a descriptor is readable.
import { readdirSync, readlinkSync } from "node:fs";
import { Reactor } from "../../src/native/reactor.ts";
import { check } from "../../src/native/shim.ts";

/** What each open descriptor of this process, or of `pid`, is: a path, or what Linux calls it. */
export function openDescriptors(pid: number | "self" = "self"): string[] {
  const open: string[] = [];
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    try {
      open.push(readlinkSync(`/proc/${pid}/fd/${fd}`));
    } catch {
      // The one that listed the directory is closed again.
    }
  }
  return open;
}

/** Whether `fd` is readable now, or becomes so in time. Blocks. */
export function isReadableWithin(fd: number, milliseconds: number): boolean {
  using reactor = Reactor.open(1, "sync", 1);
  reactor.watch(fd, () => {});
  check(reactor.wait(1, milliseconds * 1000), "wait for a descriptor");
  return reactor.dispatch() > 0;
}
