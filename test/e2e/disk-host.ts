// The ground of tests of the executable's disks: a simulated host and a directory with images, which end by asserting
// that nothing is left.
import { expect } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { XenbusState } from "../../src/protocol/xenbus.ts";
import { SimHost, type SimHostOptions } from "../../src/sim/host.ts";
import type { HandmadeGuest } from "../sim/blk-guest.ts";
import type { Child } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

export class DiskHost {
  /** For commands that are to find the host. */
  readonly env: Readonly<Record<string, string>>;

  private constructor(
    readonly host: SimHost,
    readonly dir: string,
  ) {
    this.env = { XENTOOL_SIM: host.dir };
  }

  /** `images` are the files of the directory by name. */
  static async start(
    images: Readonly<Record<string, Uint8Array>> = { "a.img": new Uint8Array(1 << 20) },
    options: SimHostOptions = {},
  ): Promise<DiskHost> {
    const dir = temporaryDirectory();
    for (const [name, content] of Object.entries(images)) writeFileSync(join(dir, name), content);
    return new DiskHost(await SimHost.start(options), dir);
  }

  async close(): Promise<void> {
    const left = await this.host.settle();
    await this.host.stop();
    removeDirectory(this.dir);
    expect(left).toEqual([]);
  }
}

/** Has `server` detach its disk as SIGTERM does, from a guest that lets go. Returns the server's exit status. */
export async function detach(server: Child, guest: HandmadeGuest): Promise<number> {
  server.kill("SIGTERM");
  await guest.untilBackend(XenbusState.Closing);
  await guest.setState(XenbusState.Closed);
  const status = await server.exited;
  guest.close();
  return status;
}
