// npm run deb [-- --target x64|arm64 --version V --output DIR]: a Debian package of the executable, its manual pages,
// completion, and what `xentool blkback install` puts on a host. Needs dpkg-deb, which every Debian has.
import { parseArgs } from "node:util";
import { buildAll } from "./build-all.ts";
import { NATIVE, prepareTarget, targetNamed, type TargetName } from "./build-target.ts";
import { debFile, makeDeb } from "./deb-package.ts";
import { main, sizeText } from "./lib.ts";

await main(() => {
  const { target, version, output } = parseArgs({
    options: {
      target: { type: "string" },
      version: { type: "string" },
      output: { type: "string", default: "dist" },
    },
  }).values;
  const name = target === undefined ? (process.arch as TargetName) : targetNamed(target);
  buildAll(NATIVE);
  const executable = buildAll(prepareTarget(name));
  const made = debFile(output, name, version);
  makeDeb(made, executable, name, version);
  console.log(`${made} (${sizeText(made)}); install it with: apt install ./${made}`);
});
