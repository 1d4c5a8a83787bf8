// QEMU's own NBD client on a server that forgets what was not flushed when it dies, for comparison: it reconnects, and
// what the server had acknowledged is gone. e2e/nbd-kills shows the same with xentool, where nothing is.
import { expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { ForgetfulServer } from "../e2e/forgetful-server.ts";
import { readUntil } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";

test("QEMU with reconnect-delay: an acknowledged write is lost, without an error", async () => {
  const dir = temporaryDirectory();
  const [image, socket] = [join(dir, "disk.img"), join(dir, "nbd.sock")];
  writeFileSync(image, new Uint8Array(65_536));
  const server = new ForgetfulServer({ socket, image });
  await server.start();
  const options = `driver=nbd,server.type=unix,server.path=${socket},reconnect-delay=60`;
  const qemu = Bun.spawn(["qemu-io", "-t", "writeback", "--image-opts", options], {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "inherit",
  });
  const ask = async (command: string, answer: string): Promise<string> => {
    await qemu.stdin.write(`${command}\n`);
    await qemu.stdin.flush();
    return readUntil(qemu.stdout, answer);
  };
  await ask("write -P 7 0 4k", "wrote 4096");
  await server.kill();
  await server.start();
  expect(await ask("read -P 7 0 4k", "read 4096")).toContain("Pattern verification failed");
  await qemu.stdin.end();
  expect(await qemu.exited).toBe(1);
  await server.kill();
  removeDirectory(dir);
});
