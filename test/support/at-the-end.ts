// Loaded before all tests (bunfig.toml): what no single test sees is asserted when all have run.
import { afterAll } from "bun:test";
import { forgottenDirectories } from "./temporary.ts";

afterAll(() => {
  const left = forgottenDirectories();
  if (left.length > 0) throw new Error(`tests left these directories behind: ${left.join(" ")}`);
});
