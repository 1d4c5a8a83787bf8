// npm run build [-- --target x64|arm64]: the executable and the C shim in it, for this machine or the other kind.
import { parseArgs } from "node:util";
import { buildAll } from "./build-all.ts";
import { NATIVE, prepareTarget, targetNamed } from "./build-target.ts";
import { main, sizeText } from "./lib.ts";

await main(() => {
  const { target } = parseArgs({ options: { target: { type: "string" } } }).values;
  const executable = buildAll(target === undefined ? NATIVE : prepareTarget(targetNamed(target)));
  console.log(
    `${executable} (${sizeText(executable)}, ${target ?? process.arch}): all that a host needs, in one file`,
  );
});
