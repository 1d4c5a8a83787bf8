// A disk in a Ceph cluster, for npm run test:ceph: nothing is lost while an OSD is killed and comes back, or while the
// program between us and the cluster is killed, and a guest's disk that is closed on one host has every byte on the
// next one.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { judge, ProgramDisks, untilProgram } from "../e2e/program-disks.ts";
import { readUntil } from "../support/process.ts";
import { chosenSeed, Random } from "../support/random.ts";
import { CephCluster } from "./cluster.ts";

const SIZE = "128M";
const LOAD = ["--bs=4k", "--iodepth=16", "--size=64M", "--rw=randwrite", "--randseed=7"].concat([
  "--verify=crc32c",
  "--verify_fatal=1",
  "--verify_state_save=0",
]);
/** Ceph lets the next daemon write once it has given up the one that was killed, which takes half a minute. */
const ENGINE_KILLS = 3;
let cluster: CephCluster;
beforeAll(async () => {
  const random = new Random(chosenSeed());
  const port = 20_000 + random.below(10_000);
  cluster = await CephCluster.start([port, port + 1]);
}, 200_000);
afterAll(() => cluster[Symbol.asyncDispose]());

/** Serves the image on `world`'s host, and exports the guest's disk: the URI, and how to end it. */
async function connect(world: ProgramDisks, image: string) {
  const options = ["--domid", "1", "--vdev", "xvdb", "--format", "rbd"];
  const server = world.spawn(["-v", "blkback", "serve", image, ...options], cluster.env);
  await readUntil(server.stderr, "offering");
  const socket = world.path("front.sock");
  const front = world.spawn(["blkfront", "nbd", "--vdev", "xvdb", "--socket", socket], {
    XENTOOL_DOMID: "1",
  });
  await readUntil(front.stderr, "serving");
  const end = async (): Promise<number> => {
    front.kill("SIGTERM");
    await front.exited;
    server.kill("SIGTERM");
    return server.exited;
  };
  return { uri: `nbd+unix:///?socket=${socket}`, end };
}

const fio = (uri: string, ...options: readonly string[]): Promise<string> =>
  judge("fio", "--name=disk", "--ioengine=nbd", `--uri=${uri}`, ...LOAD, ...options);

test("an OSD that is killed and comes back: the guest's writes wait, and none is lost", async () => {
  const image = await cluster.createImage("killed", SIZE);
  const world = await ProgramDisks.start();
  const { uri, end } = await connect(world, image);
  const load = fio(uri, "--do_verify=1");
  await cluster.killOsd(1);
  await cluster.untilUp(2);
  cluster.startOsd(1);
  await cluster.untilUp(3);
  await load;
  expect(await end()).toBe(143);
  await world.close();
}, 300_000);

test("the storage daemon, killed again and again: the guest sees no error, and no write is lost", async () => {
  const image = await cluster.createImage("between", SIZE);
  const world = await ProgramDisks.start();
  const { uri, end } = await connect(world, image);
  const requests = async (): Promise<number> => {
    const [disk] = JSON.parse((await world.run(["blkback", "stats", "--json"])).stdout) as {
      requests: number;
    }[];
    return disk?.requests ?? 0;
  };
  let isOver = false;
  const load = fio(uri, "--do_verify=1", "--fsync=64").finally(() => (isOver = true));
  const killed = new Set<number>();
  for (let kills = 0; kills < ENGINE_KILLS; kills++) {
    const before = await requests();
    // More than can be under way.
    while ((await requests()) < before + 100) await Bun.sleep(50);
    expect(isOver).toBe(false);
    const daemon = await untilProgram("qemu-storage-daemon", `"image":"between"`);
    process.kill(daemon, "SIGKILL");
    killed.add(daemon);
  }
  expect(killed.size).toBe(ENGINE_KILLS);
  await load;
  expect(await end()).toBe(143);
  await world.close();
}, 600_000);

test("closed on one host and served on the next: every byte is there", async () => {
  const image = await cluster.createImage("moved", SIZE);
  const first = await ProgramDisks.start();
  const before = await connect(first, image);
  await fio(before.uri, "--do_verify=0");
  expect(await before.end()).toBe(143);
  await first.close();
  const second = await ProgramDisks.start();
  const after = await connect(second, image);
  await fio(after.uri, "--verify_only=1");
  expect(await after.end()).toBe(143);
  await second.close();
}, 300_000);

test("an image that is not there: what the daemon says", async () => {
  const world = await ProgramDisks.start();
  const options = ["--domid", "1", "--vdev", "xvdb", "--format", "rbd"];
  const refused = await world.run(["blkback", "serve", "rbd/none", ...options], cluster.env);
  expect(refused.stderr).toContain("error reading header from none");
  expect(refused.status).toBe(5);
  await world.close();
}, 60_000);
