// How long requests stall when the NBD server of a disk is killed, and started again a while later: xentool beside
// QEMU's qdisk (with reconnect-delay), each with a server of its own, in turn. The stall is the longest latency under
// load; what it is beyond the time without a server is the share of whoever connects. JSON on stdout: medians.
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startQemuOf, startXentoolOf, stopServers, type DiskServer } from "./disk-servers.ts";
import { makeImage, median, startHost, xentool, XENTOOL } from "./measure.ts";

const TURNS = Number(process.env["TURNS"] ?? 5);
const AWAY_MS = [0, 300, 3000];
const BEFORE_MS = 1500;
const IMAGE_MIB = 64;
/** Random writes are sent again to the new server before anything else, as far as they were not flushed. */
const LOADS = [
  { rw: "randread", iodepth: 1 },
  { rw: "randwrite", iodepth: 32 },
] as const;

class RestartedServer {
  readonly socket: string;
  readonly #dir: string;
  #process: Bun.Subprocess | undefined;

  constructor(dir: string) {
    this.#dir = dir;
    this.socket = join(dir, "nbd.sock");
  }

  /** Resolves once it listens. */
  async start(): Promise<void> {
    const pid = join(this.#dir, "pid");
    rmSync(pid, { force: true });
    rmSync(this.socket, { force: true });
    const argv = ["nbdkit", "-f", "-U", this.socket, "-P", pid, "file", join(this.#dir, "disk.img")];
    this.#process = Bun.spawn(argv, { stdio: ["ignore", "ignore", "inherit"] });
    while (!existsSync(pid)) await Bun.sleep(1);
  }

  async kill(): Promise<void> {
    this.#process?.kill("SIGKILL");
    await this.#process?.exited;
  }
}

interface Turn {
  readonly stallMs: number;
  readonly awayMs: number;
}

async function turn(
  server: RestartedServer,
  vdev: string,
  { rw, iodepth }: (typeof LOADS)[number],
  awayMs: number,
): Promise<Turn> {
  const seconds = (BEFORE_MS + awayMs) / 1000 + 4;
  const load = ["--rw", rw, "--bs", "4k", "--iodepth", String(iodepth), "--runtime", String(seconds)];
  const argv = [XENTOOL, "blkfront", "bench", "--vdev", vdev, ...load, "--json", "--timeout", "30"];
  const bench = Bun.spawn(argv, {
    env: { ...process.env, XENTOOL_SIM: host, XENTOOL_DOMID: "1" },
    stdio: ["ignore", "pipe", "inherit"],
  });
  await Bun.sleep(BEFORE_MS);
  const sinceMs = performance.now();
  await server.kill();
  await Bun.sleep(awayMs);
  await server.start();
  const wasAwayMs = performance.now() - sinceMs;
  const { errors, latencyUs } = (await new Response(bench.stdout).json()) as {
    readonly errors: number;
    readonly latencyUs: { readonly max: number };
  };
  if (errors > 0) throw new Error(`${errors} requests failed`);
  return { stallMs: latencyUs.max / 1000, awayMs: wasAwayMs };
}

/** Without those whose load began, on a busy machine, when the server was gone already. */
async function wholeTurn(...of: Parameters<typeof turn>): Promise<Turn> {
  for (;;) {
    const it = await turn(...of);
    if (it.stallMs >= it.awayMs) return it;
  }
}

const dir = mkdtempSync(join(tmpdir(), "xentool-bench-"));
const host = startHost();
const ground = { host, prefix: [] };
const clients: { readonly backing: RestartedServer; readonly disk: DiskServer }[] = [];
const backings = ["ours", "theirs"].map((name) => {
  const place = mkdtempSync(join(dir, `${name}-`));
  makeImage(join(place, "disk.img"), IMAGE_MIB);
  return new RestartedServer(place);
});
try {
  for (const backing of backings) await backing.start();
  const [ours, theirs] = backings as [RestartedServer, RestartedServer];
  clients.push({
    backing: ours,
    disk: await startXentoolOf(ground, "xvdc", [`nbd+unix:///?socket=${encodeURIComponent(ours.socket)}`]),
  });
  const node = { driver: "nbd", server: { type: "unix", path: theirs.socket }, "reconnect-delay": 60 };
  clients.push({
    backing: theirs,
    disk: startQemuOf(ground, "xvdb", "QEMU", [
      "-blockdev",
      JSON.stringify({ ...node, "node-name": "disk" }),
    ]),
  });
  const rows: object[] = [];
  for (const load of LOADS)
    for (const awayMs of AWAY_MS) {
      const of = clients.map(({ disk: { name } }) => ({ name, turns: [] as Turn[] }));
      for (let i = 0; i < TURNS; i++)
        for (const [at, { backing, disk }] of clients.entries())
          of[at]?.turns.push(await wholeTurn(backing, disk.vdev, load, awayMs));
      const results = of.map(({ name, turns }) => ({
        name,
        awayMs: Math.round(median(turns.map((it) => it.awayMs))),
        stallMs: Math.round(median(turns.map((it) => it.stallMs))),
        beyondMs: Math.round(median(turns.map((it) => it.stallMs - it.awayMs))),
      }));
      rows.push({ ...load, results });
      process.stderr.write(`${load.rw} ${load.iodepth}: ${JSON.stringify(results)}\n`);
    }
  console.log(JSON.stringify({ turns: TURNS, rows }));
} finally {
  await stopServers(clients.map(({ disk }) => disk));
  for (const backing of backings) await backing.kill();
  xentool(["sim", "stop", "--dir", host]);
  rmSync(dir, { recursive: true });
}
