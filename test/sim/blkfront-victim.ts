// A frontend in a process of its own, to be killed: blkfront-victim.ts DIR VDEV [QUEUES].
import { BlockFrontend } from "./block-frontend.ts";
import { toDomid } from "../../src/core/types.ts";
import { SimPlatform } from "../../src/platform/sim.ts";

const [dir = "", vdev = "", queues = "1"] = process.argv.slice(2);
const platform = new SimPlatform({ name: "sim", dir, domid: toDomid(1) });
const frontend = await BlockFrontend.connect(platform, vdev, { queues: Number(queues) });
await frontend.write(0, new Uint8Array(512));
process.stdout.write("connected\n");
setInterval(() => {}, 60_000);
