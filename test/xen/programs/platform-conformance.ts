// The platform conformance suite on real Xen, run by Bun in dom0: platform-conformance.ts PATTERN runs the cases
// whose name matches, dom0 with itself. One line a case; exit status 1 when one failed.
import { toDomid } from "../../../src/core/types.ts";
import { XenPlatform } from "../../../src/platform/xen.ts";
import { PLATFORM_CASES } from "../../conformance/platform-suite.ts";

const pattern = new RegExp(process.argv[2] ?? "");
const dom0 = { name: "xen", domid: toDomid(0) } as const;
for (const [name, run] of Object.entries(PLATFORM_CASES).filter(([it]) => pattern.test(it))) {
  const front = new XenPlatform(dom0);
  const back = new XenPlatform(dom0);
  try {
    run({ front, back });
    console.log(`ok   ${name}`);
  } catch (error) {
    console.log(`FAIL: ${name}: ${error instanceof Error ? error.stack : String(error)}`);
    process.exitCode = 1;
  } finally {
    front.close();
    back.close();
  }
}
