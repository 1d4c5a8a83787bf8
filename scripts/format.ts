// npm run format: rewrites the sources in the one format that `npm run check` accepts.
import { bun, main, run } from "./lib.ts";

await main(() => run(bun, ["fmt"]));
