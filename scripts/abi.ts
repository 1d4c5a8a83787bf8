// npm run abi: writes src/native/abi.ts anew, after a change of csrc/xentool.h.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { ABI_FILE, generateAbi } from "./abi-file.ts";
import { main, root } from "./lib.ts";

await main(() => writeFileSync(join(root, ABI_FILE), generateAbi()));
