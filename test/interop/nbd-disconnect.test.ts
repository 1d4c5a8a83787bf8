// Why we wait for replies when we give a server up, and not for the end of its connections (link.ts): QEMU's server
// ends one as soon as it is asked to, and carries out afterwards what came on it before.
import { expect, test } from "bun:test";
import { join } from "node:path";
import { NbdServer } from "../support/nbd-servers.ts";
import { DISC, RawClient, WRITE } from "../sim/nbd-raw-client.ts";

const WRITES = 5;

function slowStorageDaemon(): Promise<NbdServer> {
  const group = { "qom-type": "throttle-group", id: "slow", limits: { "iops-write": 1 } };
  const slow = "driver=throttle,node-name=disk,throttle-group=slow,file=file";
  return NbdServer.start((dir) => [
    "qemu-storage-daemon",
    `--pidfile=${join(dir, "pid")}`,
    `--object=${JSON.stringify(group)}`,
    `--blockdev=driver=file,node-name=file,filename=${join(dir, "disk.img")}`,
    `--blockdev=${slow}`,
    `--nbd-server=addr.type=unix,addr.path=${join(dir, "nbd.sock")}`,
    "--export=type=nbd,id=disk,node-name=disk,name=,writable=on",
  ]);
}

test("QEMU's server ends a connection before it has carried out what came on it", async () => {
  await using server = await slowStorageDaemon();
  const client = await RawClient.open(join(server.dir, "nbd.sock"), false);
  const written = (): number =>
    server.image.subarray(0, WRITES * 512).filter((byte) => byte === 9).length / 512;
  const data = new Uint8Array(512).fill(9);
  for (let at = 0; at < WRITES; at++) client.request(WRITE, BigInt(at), at * 512, 512, 0, data);
  client.request(DISC, BigInt(WRITES), 0, 0);
  await client.untilEnded();
  expect(written()).toBeLessThan(WRITES);
  while (written() < WRITES) await Bun.sleep(10);
});
