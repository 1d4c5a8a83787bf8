// Xen's own xenstore servers, unmodified, as a program of domain 0 on a simulated host, and domain 0's ring to them,
// which its kernel would have made: they find it in two files of /proc/xen. They look for everything in fixed places,
// so each has a mount namespace of its own.
import { closeSync, existsSync, mkdirSync, openSync, truncateSync, writeFileSync } from "node:fs";
import { PAGE_SIZE, toDomid, type EvtchnPort } from "../../src/core/types.ts";
import { mapFile, type Mapping } from "../../src/native/memory.ts";
import type { EventChannels, StoreRing, XenstoreEndpoint } from "../../src/platform/platform.ts";
import { PortStream } from "../../src/platform/port-stream.ts";
import { SimPlatform } from "../../src/platform/sim.ts";
import { start, type Child } from "../support/process.ts";
import { ProgramHost } from "./program-host.ts";

/** Arguments: the directory in which port, page and socket are, then the server. */
const IN_ITS_OWN_PLACE = `
limit=$(ulimit -Hn)
for place in /proc /var/run /var/log /var/lib; do mount -t tmpfs none $place; done
mkdir -p /proc/xen /proc/sys/fs /var/run/xen /var/run/xenstored /var/log/xen /var/lib/xenstored /var/lib/xen/xenstore
echo $limit >/proc/sys/fs/nr_open
cp "$1/port" /proc/xen/xsd_port
touch /proc/xen/xsd_kva
mount --bind "$1/page" /proc/xen/xsd_kva
mount --bind "$1/run" /var/run/xenstored
shift
exec "$@"`;

export class XenstoredHost {
  readonly programs: ProgramHost;
  readonly server: Child;
  readonly socket: XenstoreEndpoint;
  readonly #dom0: SimPlatform;
  readonly #channels: EventChannels;
  readonly #port: EvtchnPort;
  readonly #page: Mapping;
  readonly #events: PortStream;
  readonly #wakes = new Set<() => void>();

  /** Starts `command`, which stays in the foreground, and waits for its socket. */
  static async start(command: readonly string[]): Promise<XenstoredHost> {
    const host = new XenstoredHost(await ProgramHost.start(), command);
    while (!existsSync(host.socket.path) && host.server.exitCode === null) await Bun.sleep(1);
    return host;
  }

  private constructor(programs: ProgramHost, command: readonly string[]) {
    this.programs = programs;
    this.#dom0 = new SimPlatform({ name: "sim", dir: programs.host.dir, domid: toDomid(0) });
    this.#channels = this.#dom0.openEventChannels();
    this.#port = this.#channels.bindUnbound(toDomid(0));
    this.#events = new PortStream(this.#channels, () => this.#wakes.forEach((wake) => wake()));
    this.#page = pageOf(programs.file("page"));
    writeFileSync(programs.file("port"), String(this.#port));
    mkdirSync(programs.file("run"));
    this.socket = { kind: "socket", path: programs.file("run/socket") };
    const asRoot = process.getuid?.() === 0 ? [] : ["--user", "--map-root-user"];
    const shell = ["unshare", ...asRoot, "--mount", "sh", "-ec", IN_ITS_OWN_PLACE, "sh", programs.dir];
    const env = { ...programs.environment(0), XENSTORED_PATH: this.socket.path };
    this.server = programs.started(start([...shell, ...command], { env }));
  }

  /** Domain 0's ring, for one client at a time. */
  get ring(): XenstoreEndpoint {
    const ring: StoreRing = {
      page: this.#page,
      events: this.#channels,
      port: this.#port,
      onEvent: (wake) => {
        this.#wakes.add(wake);
        return () => void this.#wakes.delete(wake);
      },
    };
    return { kind: "ring", path: "domain 0's ring", open: () => ring };
  }

  async close(): Promise<void> {
    await this.#events.close();
    this.#channels.close();
    this.#page.close();
    this.#dom0.close();
    await this.programs.close();
  }
}

/** A page of a file, which another process maps, too. */
function pageOf(path: string): Mapping {
  writeFileSync(path, "");
  truncateSync(path, PAGE_SIZE);
  const fd = openSync(path, "r+");
  try {
    return mapFile(fd, PAGE_SIZE, true);
  } finally {
    closeSync(fd);
  }
}
