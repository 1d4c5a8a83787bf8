// Simulated hosts as their user meets them: which there are, and what becomes of background jobs.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { FoundHost } from "../../src/sim/list.ts";
import { readUntil } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { executable, runXentool, spawnXentool } from "./executable.ts";

let dir: string;
beforeEach(() => {
  dir = temporaryDirectory();
  writeFileSync(join(dir, "disk.img"), new Uint8Array(2 ** 20));
});
afterEach(() => removeDirectory(dir));

/** A shell on a host of its own with a server in the background; it says `end` when the server offers its disk. */
function shellWithServer(afterwards: string) {
  const script = `
    {
      "${executable}" blkback serve disk.img --domid 1 --vdev xvdb --json >events & echo $! >pid
      wait $!; echo $? >status
    } &
    until grep -q offered events 2>/dev/null; do sleep 0.02; done
    ${afterwards}`;
  return spawnXentool(["sim", "run", "--", "bash", "-c", script], { cwd: dir });
}

test("when the shell exits, its background jobs on the host are asked to end, and end as at SIGTERM", async () => {
  const shell = shellWithServer("echo $XENTOOL_SIM; exit 7");
  const home = await new Response(shell.stdout).text();
  expect(await shell.exited).toBe(7);
  while (!(await Bun.file(join(dir, "status")).exists())) await new Promise(setImmediate);
  expect(readFileSync(join(dir, "status"), "utf8")).toBe("143\n");
  expect(readFileSync(join(dir, "events"), "utf8")).toContain('{"event":"ended","reason":"closed"}');
  expect((await runXentool(["sim", "status", "--dir", home.trim()])).status).toBe(3);
});

test("one that does not end is killed, at the latest at a signal", async () => {
  const shell = shellWithServer("kill -STOP $(cat pid); echo stopped");
  await readUntil(shell.stdout, "stopped");
  const pid = Number(readFileSync(join(dir, "pid"), "utf8"));
  const isThere = (): boolean => {
    try {
      return readFileSync(`/proc/${pid}/stat`, "utf8").includes(") T ");
    } catch {
      return false;
    }
  };
  // Until the command has ended, a signal is for the command.
  while (isThere()) {
    shell.kill("SIGINT");
    await Bun.sleep(20);
  }
  expect(await shell.exited).toBe(0);
});

test("sim list shows hosts; a dead one is named, and sim stop removes what it left", async () => {
  const started = await runXentool(["sim", "start", "--domains", "2", "--json"]);
  const { pid, dir: home } = JSON.parse(started.stdout) as { pid: number; dir: string };
  const listed = async (): Promise<FoundHost | undefined> => {
    const { status, stdout } = await runXentool(["sim", "list", "--json"]);
    expect(status).toBe(0);
    return (JSON.parse(stdout) as FoundHost[]).find((host) => host.dir === home);
  };
  const domains = [
    { domid: 0, name: "Domain-0" },
    { domid: 1, name: "domain-1" },
  ];
  expect(await listed()).toEqual({ dir: home, state: "running", pid, domains });
  expect((await runXentool(["sim", "list"])).stdout).toMatch(
    new RegExp(`^${home} +${pid} +running +0, 1$`, "m"),
  );
  process.kill(pid, "SIGSTOP");
  const silent = await runXentool(["sim", "list", "--timeout", "0.2"]);
  expect(silent.stdout).toMatch(new RegExp(`^${home} +${pid} +silent *$`, "m"));
  process.kill(pid, "SIGKILL");
  let state: string | undefined;
  while (state !== "dead") ({ state } = (await listed()) ?? { state });
  const { stderr } = await runXentool(["sim", "list"]);
  expect(stderr).toBe("xentool: to remove what a dead host has left: xentool sim stop --dir DIRECTORY\n");
  expect((await runXentool(["sim", "stop", "--dir", home])).status).toBe(0);
  expect(await listed()).toBeUndefined();
  expect(existsSync(home)).toBe(false);
});
