// npm run demo [-- IMAGE]: the main job, from end to end, where there is no Xen. A simulated host starts; a
// disk image is served to domain 1 over the block ring; a userspace frontend turns it into an NBD server; real
// NBD clients read and write it. Every step is checked by a program that is not ours.
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { styleText } from "node:util";
import { buildAll } from "./build-all.ts";
import { CommandFailed, main, root } from "./lib.ts";

const xentool = join(root, "dist/xentool");
const READY_TIMEOUT_MS = 15_000;
const DISK_MIB = 64;

const work = mkdtempSync(join(tmpdir(), "xentool-demo-"));
const children: ChildProcess[] = [];
const env: NodeJS.ProcessEnv = { ...process.env };
let step = 0;

function say(text: string): void {
  console.log(`${styleText("cyan", `${++step}.`)} ${text}`);
}

function detail(text: string): void {
  console.log(text.trimEnd().replace(/^/gm, "   "));
}

/** Runs a program to its end and gives what it printed; the demo ends when it fails. */
function judge(command: string, args: readonly string[]): string {
  const path = `${process.env["PATH"]}:/usr/sbin:/sbin`;
  const done = spawnSync(command, args, {
    encoding: "utf8",
    env: { ...env, PATH: path },
    maxBuffer: 1 << 26,
  });
  if (done.status === 0) return done.stdout;
  throw new CommandFailed(`${command} ${args.join(" ")} failed: ${done.error?.message ?? done.stderr}`);
}

/** Starts xentool in the background and waits until `ready` says so. */
async function start(
  args: readonly string[],
  ready: (line: string) => boolean,
  domid = "0",
): Promise<ChildProcess> {
  const child = spawn(xentool, args, {
    env: { ...env, XENTOOL_DOMID: domid },
    stdio: ["ignore", "pipe", "pipe"],
  });
  children.push(child);
  let output = "";
  await new Promise<void>((resolve, reject) => {
    const failed = (why: string) => (): void =>
      reject(new CommandFailed(`xentool ${args.join(" ")} ${why}\n${output}`));
    const timer = setTimeout(failed("was not ready in time"), READY_TIMEOUT_MS);
    child.on("exit", failed("ended"));
    for (const stream of [child.stdout, child.stderr])
      stream.on("data", (data: Buffer) => {
        output += data.toString();
        if (!output.split("\n").some(ready)) return;
        clearTimeout(timer);
        resolve();
      });
  });
  child.removeAllListeners("exit");
  return child;
}

/** SIGTERM, and the exit status that follows. */
async function stop(child: ChildProcess): Promise<number | null> {
  children.splice(children.indexOf(child), 1);
  if (child.exitCode !== null) return child.exitCode;
  child.kill("SIGTERM");
  const [status] = (await once(child, "exit")) as [number | null];
  return status;
}

function makeFileSystem(image: string, label: string): void {
  const files = join(work, label);
  mkdirSync(join(files, "src"), { recursive: true });
  for (const name of ["README.md", "package.json", "CMakeLists.txt"])
    if (existsSync(join(root, name))) copyFileSync(join(root, name), join(files, "src", name));
  for (let i = 0; i < 64; i++) writeFileSync(join(files, `file-${i}`), `${label} ${i}\n`.repeat(1 + i * 997));
  writeFileSync(image, "");
  truncateSync(image, DISK_MIB << 20);
  judge("mke2fs", ["-q", "-t", "ext4", "-L", label, "-d", files, image]);
}

/** Serves `image` to domain 1 and gives an NBD socket of its frontend; `body` runs in between. */
async function withDisk(image: string, mode: "r" | "w", body: (uri: string) => void): Promise<string> {
  const socket = join(work, "xvdb.sock");
  const back = await start(
    ["blkback", "serve", image, "--domid", "1", "--vdev", "xvdb", "--mode", mode],
    (line) => line.includes("offering"),
  );
  const front = await start(
    ["blkfront", "nbd", "--vdev", "xvdb", "--socket", socket],
    () => existsSync(socket),
    "1",
  );
  body(`nbd+unix:///?socket=${socket}`);
  const stats = judge(xentool, ["blkback", "stats"]);
  await stop(front);
  await stop(back);
  return stats;
}

/** The host notices the end of a process by itself, a moment later. */
async function nothingLeft(): Promise<void> {
  for (const deadline = Date.now() + READY_TIMEOUT_MS; ; await delay(20)) {
    const { leaks } = JSON.parse(judge(xentool, ["sim", "status", "--json"])) as { leaks: readonly string[] };
    if (leaks.length === 0) return;
    if (Date.now() > deadline) throw new CommandFailed(`left behind: ${leaks.join("; ")}`);
  }
}

async function demo(image: string | undefined): Promise<void> {
  buildAll();
  const host = JSON.parse(judge(xentool, ["sim", "start", "--json"])) as { dir: string };
  env["XENTOOL_SIM"] = host.dir;
  say(`a simulated Xen host with three domains runs in ${host.dir}`);

  const first = image ?? join(work, "first.img");
  if (image === undefined) makeFileSystem(first, "first");
  const size = statSync(first).size;
  say(`domain 0 serves ${first} (${size >> 20} MiB), domain 1 uses it as xvdb and exports it over NBD`);
  const readStats = await withDisk(first, "r", (uri) => {
    detail(judge("nbdinfo", [uri]));
    const copy = join(work, "copy.img");
    judge("nbdcopy", [uri, copy]);
    judge("cmp", [first, copy]);
    rmSync(copy);
  });
  say("nbdcopy read the disk through grants, event channels and the ring; cmp found every byte equal");
  detail(readStats);

  const second = join(work, "second.img");
  const disk = join(work, "disk.img");
  makeFileSystem(second, "second");
  writeFileSync(disk, "");
  truncateSync(disk, DISK_MIB << 20);
  const writeStats = await withDisk(disk, "w", (uri) => void judge("nbdcopy", ["--flush", second, uri]));
  judge("cmp", [second, disk]);
  say("nbdcopy wrote a file system to another disk; e2fsck says of the image:");
  detail(judge("e2fsck", ["-f", "-n", disk]));
  detail(writeStats);

  await nothingLeft();
  judge(xentool, ["sim", "stop"]);
  delete env["XENTOOL_SIM"];
  say("no grant, event channel, watch or process is left; the host is stopped");
}

await main(async () => {
  try {
    await demo(process.argv[2]);
  } finally {
    for (const child of children) child.kill("SIGKILL");
    if (env["XENTOOL_SIM"] !== process.env["XENTOOL_SIM"]) spawnSync(xentool, ["sim", "stop"], { env });
    rmSync(work, { recursive: true, force: true });
  }
});
