// What a relay needs for its local end, made of two files: "in", which holds "request", and "out".
import { closeSync, openSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ControlPage } from "../../src/plane/control-page.ts";
import { VchanControl } from "../../src/vchan/vchan-control.ts";
import type { LocalEnd } from "../../src/vchan/local.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

export class RelayFixture implements Disposable {
  readonly dir = temporaryDirectory();
  readonly control = new VchanControl(ControlPage.create());
  readonly local: LocalEnd;
  readonly #fds: readonly number[];

  constructor() {
    writeFileSync(join(this.dir, "in"), "request");
    const input = openSync(join(this.dir, "in"), "r");
    const output = openSync(join(this.dir, "out"), "w");
    this.#fds = [input, output, this.control.page.wakeFd];
    this.local = {
      input: { fd: input, kind: "file" },
      output: { fd: output, kind: "file" },
      outputTwin: undefined,
      endsWithOutput: false,
    };
  }

  [Symbol.dispose](): void {
    for (const fd of this.#fds) closeSync(fd);
    removeDirectory(this.dir);
  }
}
