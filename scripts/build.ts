// npm run build: dist/xentool and the C shim in it.
import { buildAll } from "./build-all.ts";
import { main } from "./lib.ts";

await main(buildAll);
