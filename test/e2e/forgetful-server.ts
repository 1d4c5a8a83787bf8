// An NBD server that forgets what was not flushed when it is killed, and a disk on it.
import { join } from "node:path";
import type { ForgetfulOptions } from "../support/forgetful-nbd.ts";
import { readUntil, start, type Child } from "../support/process.ts";
import type { MakeStorage } from "./kill-world.ts";

export class ForgetfulServer {
  readonly #options: ForgetfulOptions & { readonly socket: string };
  #child: Child | undefined;

  constructor(options: ForgetfulOptions & { readonly socket: string }) {
    this.#options = options;
  }

  get uri(): string {
    return `nbd+unix:///?socket=${this.#options.socket}`;
  }

  async start(changed: Partial<ForgetfulOptions> = {}): Promise<void> {
    const script = join(import.meta.dirname, "../support/forgetful-nbd.ts");
    this.#child = start([process.execPath, script, JSON.stringify({ ...this.#options, ...changed })]);
    await readUntil(this.#child.stdout, "listening");
  }

  /** What it says of requests when it lags. */
  get output(): Pick<Child, "stdout" | "stderr"> {
    return this.#child as Child;
  }

  /** From now on it says nothing. */
  hang(): void {
    this.#child?.kill("SIGSTOP");
  }

  async kill(): Promise<void> {
    this.#child?.kill("SIGKILL");
    await this.#child?.exited;
  }
}

export const onForgetfulServer: MakeStorage = async (dir, image) => {
  const server = new ForgetfulServer({ socket: join(dir, "nbd.sock"), image });
  return {
    params: server.uri,
    start: () => server.start(),
    kill: () => server.kill(),
    settle: async () => {},
  };
};
