// A guest's part of the platform conformance suite: answers, on standard output, what platform-conformance.ts in dom0
// asks on standard input, until that ends.
import { toDomid } from "../../../src/core/types.ts";
import { XenPlatform } from "../../../src/platform/xen.ts";
import { frontAnswers } from "../../conformance/remote-front.ts";
import { readLine, writeLine } from "./lines.ts";

const answer = frontAnswers(new XenPlatform({ name: "xen", domid: toDomid(Number(process.argv[2])) }));
for (let question = readLine(); question !== undefined; question = readLine()) writeLine(answer(question));
