// A Ceph cluster on loopback, from Debian's packages: a monitor, a manager, three OSDs of 2 GiB (sparse). Without
// authentication, because nobody else is on this machine's loopback.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { finished, start } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

const OSDS = 3;
const POOL = "rbd";

const configuration = (dir: string, fsid: string, [v2, v1]: readonly [number, number]): string => `
[global]
fsid = ${fsid}
mon_host = [v2:127.0.0.1:${v2},v1:127.0.0.1:${v1}]
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
keyring = /dev/null
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
run_dir = ${dir}
admin_socket = ${dir}/$name.asok
log_file = ${dir}/$name.log
crash_dir = ${dir}/crash
mon_data = ${dir}/mon.$id
mgr_data = ${dir}/mgr.$id
osd_data = ${dir}/osd.$id
osd_pool_default_size = ${OSDS}
osd_pool_default_min_size = 2
# Copies may be on the same host.
osd_crush_chooseleaf_type = 0
bluestore_block_size = 2147483648
osd_memory_target = 939524096
# A dead OSD is noticed within seconds.
osd_heartbeat_interval = 1
osd_heartbeat_grace = 6
mon_osd_min_down_reporters = 1
`;

export class CephCluster implements AsyncDisposable {
  /** For clients: where the cluster's configuration is. */
  readonly env: Readonly<Record<string, string>>;
  readonly #dir = temporaryDirectory();
  readonly #daemons = new Map<string, Bun.Subprocess>();

  private constructor() {
    this.env = { CEPH_CONF: join(this.#dir, "ceph.conf") };
  }

  /** `ports`: of the monitor, for both versions of the protocol. Resolves when the cluster takes images. */
  static async start(ports: readonly [number, number]): Promise<CephCluster> {
    const cluster = new CephCluster();
    try {
      await cluster.#create(ports);
    } catch (error) {
      await cluster[Symbol.asyncDispose]();
      throw error;
    }
    return cluster;
  }

  /** Runs one of Ceph's programs to its end, and returns what it printed. */
  async run(...argv: readonly string[]): Promise<string> {
    const { status, stdout, stderr } = await finished(start(argv, this.#options));
    if (status !== 0) throw new Error(`${argv.join(" ")}: status ${status}: ${stderr}`);
    return stdout;
  }

  /** Makes an image; returns its name for `--format rbd`. */
  async createImage(name: string, size: string): Promise<string> {
    await this.run("rbd", "create", `${POOL}/${name}`, "--size", size);
    return `${POOL}/${name}`;
  }

  async killOsd(id: number): Promise<void> {
    const osd = this.#daemons.get(`osd.${id}`);
    osd?.kill("SIGKILL");
    await osd?.exited;
  }

  startOsd(id: number): void {
    this.#start(`osd.${id}`, "ceph-osd", "-f", "-i", String(id));
  }

  /** Waits until the monitor counts so many OSDs as up. */
  async untilUp(count: number): Promise<void> {
    for (;;) {
      const { num_up_osds: up } = JSON.parse(await this.run("ceph", "osd", "stat", "-f", "json")) as {
        num_up_osds: number;
      };
      if (up === count) return;
      await Bun.sleep(200);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const daemon of this.#daemons.values()) daemon.kill("SIGKILL");
    for (const daemon of this.#daemons.values()) await daemon.exited;
    removeDirectory(this.#dir);
  }

  get #options(): { readonly env: Readonly<Record<string, string | undefined>>; readonly cwd: string } {
    return { env: { ...process.env, ...this.env }, cwd: this.#dir };
  }

  #start(name: string, ...argv: readonly string[]): void {
    const stdio: ["ignore", "ignore", "ignore"] = ["ignore", "ignore", "ignore"];
    this.#daemons.set(name, Bun.spawn([...argv], { ...this.#options, stdio }));
  }

  async #create(ports: readonly [number, number]): Promise<void> {
    const fsid = crypto.randomUUID();
    const [v2, v1] = ports;
    writeFileSync(join(this.#dir, "ceph.conf"), configuration(this.#dir, fsid, ports));
    const address = `[v2:127.0.0.1:${v2},v1:127.0.0.1:${v1}]`;
    await this.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, "monmap");
    await this.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap");
    this.#start("mon", "ceph-mon", "-f", "-i", "a");
    mkdirSync(join(this.#dir, "mgr.x"));
    this.#start("mgr", "ceph-mgr", "-f", "-i", "x");
    for (let id = 0; id < OSDS; id++) {
      const uuid = crypto.randomUUID();
      mkdirSync(join(this.#dir, `osd.${id}`));
      await this.run("ceph", "osd", "new", uuid, String(id));
      await this.run("ceph-osd", "--mkfs", "-i", String(id), "--osd-uuid", uuid, "--no-mon-config");
      this.startOsd(id);
    }
    await this.untilUp(OSDS);
    await this.run("ceph", "osd", "pool", "create", POOL, "8", "8");
    await this.run("rbd", "pool", "init", POOL);
  }
}
