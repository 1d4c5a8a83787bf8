// The platform conformance suite on real Xen, run by Bun in dom0. Alone: dom0 with itself. With a guest's number:
// that guest's platform-agent.ts, on standard input and output, is `front`.
import { toDomid } from "../../../src/core/types.ts";
import { XenPlatform } from "../../../src/platform/xen.ts";
import { printCases } from "../../conformance/print-cases.ts";
import { remoteFront } from "../../conformance/remote-front.ts";
import { readLine, writeLine } from "./lines.ts";

function ask(question: string): string {
  writeLine(question);
  const answer = readLine();
  if (answer !== undefined) return answer;
  console.error("FAIL: the guest's agent is gone");
  process.exit(1);
}

const guest = process.argv[2];
const back = new XenPlatform({ name: "xen", domid: toDomid(0) });
const front = guest === undefined ? back : remoteFront(toDomid(Number(guest)), ask);
printCases({ front, back });
