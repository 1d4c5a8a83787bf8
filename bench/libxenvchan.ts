// Debian's libxenvchan as a contender: both ends are test/xen/programs/vchan-peer.c, on the simulated platform.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { programEnvironment } from "../src/sim/programs.ts";

const SOURCE = fileURLToPath(new URL("../test/xen/programs/vchan-peer.c", import.meta.url));
const LIBRARIES = ["xenvchan", "xengnttab", "xenevtchn", "xenstore", "xentoollog"];

/** By kind: megabytes a second, of round trips the microseconds of one. */
export type PeerFigures = Readonly<Record<string, number>>;

/** Compiles the program into `dir`; returns its path. */
export function compilePeer(dir: string): string {
  const path = join(dir, "vchan-peer");
  const flags = ["-O2", "-std=c11", "-D_GNU_SOURCE", "-o", path, SOURCE];
  const done = spawnSync("cc", [...flags, ...LIBRARIES.map((name) => `-l${name}`)], { encoding: "utf8" });
  if (done.status !== 0) throw new Error(`cannot compile vchan-peer: ${done.stderr}`);
  return path;
}

export async function peerFigures(
  host: string,
  peer: string,
  ringSize: number,
  bytes: number,
  rounds: number,
): Promise<PeerFigures> {
  const start = (domid: number, ...args: readonly string[]) =>
    Bun.spawn([peer, ...args], {
      env: { ...process.env, ...programEnvironment(host, domid) },
      stdio: ["ignore", "pipe", "inherit"],
    });
  const size = String(ringSize);
  const ends = [
    start(1, "server", "0", "data/bench", size, size, "bench-serve"),
    start(0, "client", "1", "/local/domain/1/data/bench", "bench", String(bytes), String(rounds)),
  ];
  const [, text = ""] = await Promise.all(ends.map(({ stdout }) => stdout.text()));
  const statuses = await Promise.all(ends.map(({ exited }) => exited));
  if (statuses.some((status) => status !== 0)) throw new Error(`vchan-peer failed: ${statuses.join(", ")}`);
  const lines = text.matchAll(/^(\S+) ([\d.]+) /gm);
  return Object.fromEntries([...lines].map(([, kind = "", figure]) => [kind, Number(figure)]));
}
