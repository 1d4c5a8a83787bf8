// Run by Bun: one fuzzer, in a process of its own. Arguments: its file, how many cases, the seed.
import { argv } from "node:process";

const [file, cases, seed] = argv.slice(2);
const fuzzer = (await import(String(file))) as { run(cases: number, seed: number): Promise<void> };
await fuzzer.run(Number(cases), Number(seed));
