// Programs that serve images to us: kept alive as long as we are, started again when they die, and bounded in what they
// may print.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { keepProcess } from "../../src/block/program/keeper.ts";
import { relayLines } from "../../src/block/program/messages.ts";
import { NbdProgram, type ProgramOptions } from "../../src/block/program/program.ts";
import { describeError } from "../../src/core/errors.ts";
import { probeExport } from "../../src/block/targets/nbd/probe.ts";
import { isListening } from "../../src/native/unix-listener.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

let dir: string;
beforeEach(() => {
  dir = temporaryDirectory();
});
afterEach(() => removeDirectory(dir));

const isZombie = (pid: string): boolean => readFileSync(`/proc/${pid}/stat`, "utf8").includes(") Z ");

describe("a kept process", () => {
  const keep = async (script: string, patienceS = 10): Promise<readonly [string, readonly string[]]> => {
    const lines: string[] = [];
    const fd = openSync("/dev/null", "r");
    const kept = keepProcess(
      ["/bin/sh", "-c", script],
      [fd],
      (line) => {
        lines.push(line);
        if (line === "stop me") kept.stop();
      },
      { patienceS },
    );
    const { how } = await kept.ended;
    closeSync(fd);
    return [how, lines];
  };

  test.each([
    ["exit 0", "ended with status 0"],
    ["echo first; echo why >&2; exit 3", "ended with status 3: why"],
    ["kill -9 $$", "was killed by signal 9"],
    ["echo hi; kill -9 $PPID; sleep 1000", "was killed with its keeper: hi"],
    ["printf 'a\\033[31m'", "ended with status 0: a\\x1b[31m"],
    ["echo stop me; sleep 1000", "was killed by signal 15: stop me"],
    ["sleep 1000 & echo stop me; wait", "was killed by signal 15: stop me"],
    ["exec 2>&1; setsid sleep 0.3 & echo over", "ended with status 0: over"],
  ])("%s", async (script, how) => {
    const [ended] = await keep(script);
    expect(ended).toBe(how);
  });

  test("one that does not end when asked is killed", async () => {
    const [how] = await keep("trap : TERM; echo stop me; while :; do sleep 0.01; done", 0);
    expect(how).toStartWith("was killed");
  });

  test("one that is asked to end at once, while it still starts", async () => {
    for (let round = 0; round < 30; round++) {
      const started = keepProcess(["sleep", "1000"], [], () => {}, { patienceS: 1 });
      started.stop();
      expect((await started.ended).how).toBe("was killed by signal 15");
    }
  });

  test("one that ends in order is waited for, wherever PATH leads", async () => {
    const trap = "trap '/bin/sleep 0.3; echo in order; exit 0' TERM";
    const script = `${trap}; echo stop me; while :; do /bin/sleep 0.01; done`;
    const kept = keepProcess(["/bin/sh", "-c", script], [], (line) => line === "stop me" && kept.stop(), {
      environment: { PATH: dir },
    });
    expect(await kept.ended).toEqual({ how: "ended with status 0: in order", wasStarted: true });
  });

  test.each(["stop", "kill"] as const)(
    "is over when all of its session is, however long that takes: %s",
    async (how) => {
      // The end of a process takes the kernel the longer the more memory it has.
      const script = `
      { head -c 400M /dev/zero; exec sleep 1000; } | tail -c 500M &
      until grep -q 'VmRSS.*[4-9]..... kB' /proc/$!/status; do sleep 0.02; done
      echo $!
      exec sleep 1000`;
      let tail = "";
      const kept = keepProcess(["/bin/sh", "-c", script], [], (pid) => {
        tail = pid;
        kept[how]();
      });
      await kept.ended;
      expect(tail).toMatch(/^\d+$/);
      expect(existsSync(`/proc/${tail}`) && !isZombie(tail)).toBe(false);
    },
  );

  test("knows its listening socket", async () => {
    const inherited = "for n in 3 4 5 6 7 8 9 10; do [ ! -e /proc/$$/fd/$n ] || echo $n; done";
    const [, lines] = await keep(`echo $LISTEN_FDS $((LISTEN_PID - $$)); ${inherited}`);
    expect(lines).toEqual(["1 0", "3"]);
  });
});

describe("what a program prints", () => {
  test("is counted beyond twenty lines a second, and cut into lines of 500 characters", async () => {
    const lines: string[] = [];
    const text = `${Array.from({ length: 30 }, (_, number) => `line ${number}`).join("\n")}\n${"x".repeat(700)}`;
    const printed = relayLines(new Blob([text]).stream(), (line) => lines.push(line));
    expect(await printed.last).toBe(`${"x".repeat(500)}…`);
    expect(lines).toHaveLength(21);
    expect(lines[19]).toBe("line 19");
    expect(lines[20]).toBe("(11 more lines)");
  });

  test("does not repeat long arguments", async () => {
    const known = JSON.stringify({ filename: "/x" });
    const printed = relayLines(new Blob([`--blockdev ${known}: no such file\n`]).stream(), () => {}, [known]);
    expect(await printed.last).toBe("--blockdev …: no such file");
  });

  test("without end, is read no faster than 64 KiB a second", async () => {
    let pulled = 0;
    const endless = new ReadableStream<Uint8Array>({
      pull: (controller) => {
        pulled++;
        controller.enqueue(new Uint8Array(64 * 1024).fill(0x79));
      },
    });
    const printed = relayLines(endless, () => {});
    await Bun.sleep(0);
    printed.cancel();
    expect(await printed.last).toHaveLength(501);
    expect(pulled).toBeLessThan(5);
  });
});

describe("an NBD program", () => {
  const program = (command: ProgramOptions["command"]): NbdProgram =>
    new NbdProgram({ name: "it", user: "a disk", command, socket: join(dir, "sock"), held: [] });
  const memory = ["nbdkit", "--foreground", "memory", "1M"];
  const probe = (): Promise<unknown> =>
    probeExport({ address: join(dir, "sock"), port: undefined, exportName: "" });

  test("serves on our socket; closing it leaves no socket", async () => {
    const it = program({ argv: memory });
    expect(it.uri).toBe(`nbd+unix:///?socket=${encodeURIComponent(join(dir, "sock"))}`);
    expect(await it.opened(probe())).toMatchObject({ sizeBytes: 1 << 20 });
    expect(() => program({ argv: memory })).toThrow("the it of the server before this one still runs");
    await it.close();
    expect(existsSync(join(dir, "sock"))).toBe(false);
  });

  test("that dies before it has opened: its last words, and it is not started again", async () => {
    const argv = ["/bin/sh", "-c", `echo x >>${join(dir, "starts")}; echo broken; exit 1`];
    const it = program({ argv });
    const why = await it.opened(new Promise(() => {})).catch(describeError);
    expect(why).toBe("it ended with status 1: broken");
    await it.close();
    expect(readFileSync(join(dir, "starts"), "utf8")).toBe("x\n");
  });

  test("that fails as foreseen is started in the other way, and once", async () => {
    const fails = (words: string): string[] => ["/bin/sh", "-c", `echo ${words}; exit 1`];
    const other = program({ argv: fails("no ring"), otherwise: { argv: memory, when: /ring/ } });
    expect(await other.opened(probe())).toMatchObject({ sizeBytes: 1 << 20 });
    await other.close();
    for (const words of ["broken", "no ring"]) {
      const otherwise = { argv: fails("ring, too"), when: /ring/ };
      const neither = program({ argv: fails(words), otherwise });
      const why = await neither.opened(new Promise(() => {})).catch(describeError);
      expect(why).toBe(`it ended with status 1: ${words === "broken" ? words : "ring, too"}`);
      await neither.close();
    }
  });

  test("that never answers: the caller's patience counts, and it ends with us", async () => {
    const it = program({ argv: ["sleep", "1000"] });
    const late = Promise.reject(new Error("no answer"));
    expect(await it.opened(late).catch(describeError)).toBe("no answer");
    expect(isListening(join(dir, "sock"))).toBe(true);
    await it.close();
    expect(isListening(join(dir, "sock"))).toBe(false);
  });

  test("that dies later is started again; connections that came meanwhile are served by the next one", async () => {
    const argv = ["/bin/sh", "-c", `echo $$ >${join(dir, "pid")}; exec ${memory.join(" ")}`];
    const it = program({ argv });
    await it.opened(probe());
    const told: (string | undefined)[] = [];
    const back = Promise.withResolvers<void>();
    let meanwhile: Promise<unknown> | undefined;
    it.reportTo((why) => {
      told.push(why);
      if (why === undefined) back.resolve();
      else meanwhile = probe();
    });
    process.kill(Number(readFileSync(join(dir, "pid"), "utf8")), "SIGKILL");
    await back.promise;
    expect(told).toEqual(["it was killed by signal 9", undefined]);
    expect(await meanwhile).toMatchObject({ sizeBytes: 1 << 20 });
    await it.close();
  });

  test("is another one for a connection that is made anew, if it was sent something", async () => {
    const argv = ["/bin/sh", "-c", `echo $$ >>${join(dir, "pids")}; exec ${memory.join(" ")}`];
    const it = program({ argv });
    const pids = (): number[] => readFileSync(join(dir, "pids"), "utf8").trim().split("\n").map(Number);
    await it.opened(probe());
    for (const anew of [true, false]) closeSync(await it.dial(anew));
    const [first, ...others] = pids();
    expect(others).toEqual([]);
    // It does not even get SIGTERM.
    process.kill(first, "SIGSTOP");
    const fd = await it.dial(true);
    expect(() => process.kill(first, 0)).toThrow("ESRCH");
    expect(await probe()).toMatchObject({ sizeBytes: 1 << 20 });
    expect(pids()).toHaveLength(2);
    closeSync(fd);
    await it.close();
  });

  test("that refuses at first after its restart is reported to serve as soon as it does", async () => {
    const refuses = join(dir, "refuses");
    const open = `if rm ${refuses}; then echo EIO it refuses >&2; exit 1; fi 2>/dev/null`;
    const script = `echo $$ >${join(dir, "pid")}; exec nbdkit --foreground eval open='${open}' get_size='echo 1M' pread='exit 1'`;
    const it = program({ argv: ["/bin/sh", "-c", script] });
    await it.opened(probe());
    writeFileSync(refuses, "");
    const back = Promise.withResolvers<void>();
    it.reportTo((why) => why === undefined && back.resolve());
    process.kill(Number(readFileSync(join(dir, "pid"), "utf8")), "SIGKILL");
    await back.promise;
    expect(existsSync(refuses)).toBe(false);
    await it.close();
  });

  test("that is silent after its restart has one connection of ours waiting, however long it takes", async () => {
    const silent = join(dir, "silent");
    const script = `echo $$ >${join(dir, "pid")}; if [ -e ${silent} ]; then exec sleep 1000; fi; exec ${memory.join(" ")}`;
    const it = program({ argv: ["/bin/sh", "-c", script] });
    await it.opened(probe());
    writeFileSync(silent, "");
    const first = readFileSync(join(dir, "pid"), "utf8");
    process.kill(Number(first), "SIGKILL");
    while (["", first].includes(readFileSync(join(dir, "pid"), "utf8"))) await Bun.sleep(20);
    await Bun.sleep(12_000);
    const sockets = readFileSync("/proc/net/unix", "utf8").split("\n");
    // The one that listens, which had another name first, and the connection that nobody has accepted.
    expect(sockets.filter((line) => line.includes(` ${join(dir, "sock")}~`))).toHaveLength(2);
    await it.close();
  }, 30_000);
});
