// bun print-simulator.ts FRONT: the cases on the simulated platform, between domain FRONT and dom0. What
// test/xen/programs/platform-conformance.ts is on real Xen.
import { toDomid } from "../../src/core/types.ts";
import { SimHost } from "../../src/sim/host.ts";
import { printCases } from "./print-cases.ts";

const host = await SimHost.start({ domains: 2 });
try {
  const front = host.platform(toDomid(Number(process.argv[2])));
  const back = host.platform(toDomid(0));
  try {
    printCases({ front, back });
  } finally {
    front.close();
    back.close();
  }
} finally {
  await host.stop();
}
