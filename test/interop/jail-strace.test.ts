// strace as the judge of the jail's table: a traced server, which two guests use one after the other, asks the kernel
// for nothing that the table does not list for its threads, except what Bun can do without.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { runXentool, executable } from "../e2e/executable.ts";
import { DiskHost } from "../e2e/disk-host.ts";
import { ALLOWED } from "../support/jail-table.ts";
import { readUntil, start } from "../support/process.ts";

/** Bun looks how much memory it uses, and the C library tries a newer call first. */
const DONE_WITHOUT = ["openat", "clone3"];
const AT = ["--domid", "1", "--vdev", "xvdb"];

let disks: DiskHost;

beforeEach(async () => {
  disks = await DiskHost.start();
});

afterEach(() => disks.close());

interface Used {
  readonly control: Set<string>;
  readonly plane: Set<string>;
}

/** The calls in a trace from the moment on when the process, or the thread, was in its jail. */
function usedIn(trace: string): Used {
  const used: Used = { control: new Set(), plane: new Set() };
  const planes = new Set<string>();
  let isJailed = false;
  for (const line of trace.split("\n")) {
    const [, thread = "", call = ""] = /^(\d+) +(\w+)\(/.exec(line) ?? [];
    const [, parent = "", child = ""] = /^(\d+) +(?:<\.\.\. )?clone[( ].*= (\d+)$/.exec(line) ?? [];
    if (planes.has(parent)) planes.add(child);
    if (call !== "" && isJailed) (planes.has(thread) ? used.plane : used.control).add(call);
    if (call === "seccomp" && line.includes("SECCOMP_FILTER_FLAG_TSYNC")) isJailed = true;
    else if (call === "seccomp" && line.includes("SECCOMP_SET_MODE_FILTER")) planes.add(thread);
  }
  return used;
}

function unlisted(used: ReadonlySet<string>, threads: "CONTROL" | "PLANE"): string[] {
  const listed = ALLOWED.filter((call) => call.threads === "BOTH" || call.threads === threads);
  const names = new Set([...listed.map(({ name }) => name), ...DONE_WITHOUT]);
  return [...used].filter((name) => !names.has(name));
}

test.each(["uring", "sync"])("--engine %s: a server asks for nothing else", async (engine) => {
  const log = join(disks.dir, "trace");
  // By itself it offers as many queues as there are processors, and a quota may leave it one.
  const options = ["--engine", engine, "--jail", "strict", "--max-queues", "2"];
  const serve = ["blkback", "serve", join(disks.dir, "a.img"), ...AT, ...options];
  const traced = start(["strace", "-f", "-qq", "-e", "signal=none", "-o", log, executable, ...serve], {
    env: { ...process.env, ...disks.env },
  });
  await readUntil(traced.stderr, "offering");
  const guest = { env: { ...disks.env, XENTOOL_DOMID: "1" } };
  for (const rw of ["randrw", "read"]) {
    const bench = [
      "blkfront",
      "bench",
      "--vdev",
      "xvdb",
      "--rw",
      rw,
      "--runtime",
      "0.2",
      "--queues",
      "2",
      "--json",
    ];
    const { status, stderr } = await runXentool(bench, guest);
    expect([status, stderr]).toEqual([0, ""]);
    expect((await runXentool(["blkback", "resize", ...AT], { env: disks.env })).status).toBe(0);
  }
  const [server = ""] = readFileSync(log, "utf8").split(" ");
  process.kill(Number(server), "SIGTERM");
  await traced.exited;
  const used = usedIn(readFileSync(log, "utf8"));
  expect(used.plane).toContain(engine === "uring" ? "io_uring_enter" : "ppoll");
  expect([...unlisted(used.control, "CONTROL"), ...unlisted(used.plane, "PLANE")]).toEqual([]);
});
