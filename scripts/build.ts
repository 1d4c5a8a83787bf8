// npm run build [-- --target x64|arm64]: the executable and the C shim in it, for this machine or the other kind.
import { statSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { buildAll } from "./build-all.ts";
import { NATIVE, prepareTarget, TARGETS } from "./build-target.ts";
import { CommandFailed, main, root } from "./lib.ts";

await main(() => {
  const { target } = parseArgs({ options: { target: { type: "string" } } }).values;
  const name = TARGETS.find((known) => known === target);
  if (target !== undefined && name === undefined)
    throw new CommandFailed(`--target ${target} is none of ${TARGETS.join(", ")}`);
  const executable = buildAll(name === undefined ? NATIVE : prepareTarget(name));
  const mib = Math.round(statSync(join(root, executable)).size / 2 ** 20);
  console.log(`${executable} (${mib} MiB)`);
});
