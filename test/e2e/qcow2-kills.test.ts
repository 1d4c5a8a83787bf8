// A guest on a qcow2 that is thin at first. The storage daemon is killed, xentool is, and both are, under load with
// trims: the guest sees no error, and reads what it was told was written; and QEMU finds the image sound.
import { expect, test } from "bun:test";
import { attempt } from "../../src/block/image/attempt.ts";
import { run } from "../support/process.ts";
import { survive, type MakeStorage } from "./kill-world.ts";
import { judge, programsWith, untilNone } from "./program-disks.ts";

const ROUNDS = Number(process.env["QCOW2_KILLS"] ?? 9);
const DAEMON = "qemu-storage-daemon";
/** Of `qemu-img check`: there are clusters that nothing uses, which a killed daemon leaves. */
const LEAKS = 3;

const CLUSTERS = [4096, 16_384, 65_536];
const KINDS = [
  "",
  "",
  ",lazy_refcounts=on",
  ",compat=0.10",
  ",preallocation=metadata",
  ",preallocation=full",
];

const onQcow2: MakeStorage = async (dir, image, random) => {
  const path = `${dir}/disk.qcow2`;
  const how = `cluster_size=${random.pick(CLUSTERS)}${random.pick(KINDS)}`;
  console.log(how);
  await judge("qemu-img", "create", "-q", "-f", "qcow2", "-o", how, path, String(Bun.file(image).size));
  return {
    params: `qcow2:${path}`,
    start: async () => {},
    kill: async () => {
      const daemons = programsWith(path, (command) => command.endsWith(DAEMON));
      for (const pid of daemons) attempt(() => process.kill(pid, "SIGKILL"));
    },
    settle: async () => {
      await untilNone(path);
      const { status, stdout, stderr } = await run(["qemu-img", "check", path]);
      expect([0, LEAKS], `${stdout}${stderr}`).toContain(status);
      await judge("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, image);
    },
  };
};

test(
  "a qcow2's programs are killed, alternating: nothing acknowledged is lost, and the image is sound",
  () => survive("qcow2 kills", ROUNDS, onQcow2),
  60_000 + ROUNDS * 8000,
);
